// SPDX-License-Identifier: Apache-2.0
//
// tvmq.h from C++: handles that close themselves, errors as exceptions; a line in, a line out.
//
//     example_cpp ARTIFACT [THREADS [BEAMS]] < ids.txt           token ids, the end token included
//     example_cpp ARTIFACT TOKENIZER [THREADS [BEAMS]] < text    with SentencePiece (define WITH_SENTENCEPIECE)
//
// TOKENIZER is a folder with source.spm and pieces.txt (line n is the piece with token id n - 1). An encoder's artifact
// takes ids and prints the vector of each line.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "tvmq.h"
#ifdef WITH_SENTENCEPIECE
#include <sentencepiece_processor.h>
#endif

namespace {

using Ids = std::vector<std::int32_t>;

class Model {
public:
    explicit Model(const std::string &path) {
        char message[512];
        tvmq_model *model = nullptr;
        if (tvmq_load(path.c_str(), nullptr, &model, message, sizeof message)) throw std::runtime_error(message);
        model_.reset(model);
    }
    tvmq_model *get() const { return model_.get(); }
    std::string info(const char *key) const {
        const char *value = tvmq_info(get(), key);
        return value ? value : "";
    }

private:
    struct Unload {
        void operator()(tvmq_model *model) const { tvmq_unload(model); }
    };
    std::unique_ptr<tvmq_model, Unload> model_;
};

// For one thread at a time; give every thread its own.
class Session {
public:
    Session(const Model &model, int threads) {
        tvmq_session *session = nullptr;
        const int code = tvmq_open(model.get(), threads, &session);
        session_.reset(session);
        check(code);
    }
    void set(const char *option, double value) { check(tvmq_set(get(), option, value)); }
    Ids translate(const Ids &ids) {
        const std::size_t length = ids.size();
        check(tvmq_translate(get(), ids.data(), &length, 1));
        const std::int32_t *tokens = nullptr;
        const std::size_t count = tvmq_result(get(), 0, 0, &tokens, nullptr);
        return Ids(tokens, tokens + count);
    }
    std::vector<float> embed(const Ids &ids) {
        const std::size_t length = ids.size();
        std::size_t rows = 0, columns = 0;
        check(tvmq_encode(get(), "embed", ids.data(), nullptr, &length, 1));
        const float *data = tvmq_rows(get(), &rows, &columns);
        return std::vector<float>(data, data + rows * columns);
    }

private:
    struct Close {
        void operator()(tvmq_session *session) const { tvmq_close(session); }
    };
    tvmq_session *get() const { return session_.get(); }
    void check(int code) const {
        if (code) throw std::runtime_error(tvmq_message(get()));
    }
    std::unique_ptr<tvmq_session, Close> session_;
};

template <typename Numbers> void print(const Numbers &numbers) {
    for (std::size_t i = 0; i < numbers.size(); i++) std::cout << (i ? " " : "") << numbers[i];
    std::cout << std::endl;
}

Ids read_ids(const std::string &line) {
    std::istringstream words(line);
    Ids ids;
    for (std::int32_t id; words >> id;) ids.push_back(id);
    if (!words.eof()) throw std::runtime_error("expected numbers: " + line);
    return ids;
}

#ifdef WITH_SENTENCEPIECE
// SentencePiece cuts text into pieces; the model numbers pieces in its own way. (Models of several languages take
// the language as a first token such as >>deu<<, which is a piece of its own: put its id before the others.)
class Tokenizer {
public:
    Tokenizer(const std::filesystem::path &folder, const Model &model)
        : end_(static_cast<std::int32_t>(tvmq_number(model.get(), "generation.eos_token_id", 0))) {
        if (!pieces_.Load((folder / "source.spm").string()).ok()) throw std::runtime_error("no source.spm");
        std::ifstream file(folder / "pieces.txt");
        for (std::string piece; std::getline(file, piece); names_.push_back(piece))
            if (!piece.empty()) ids_.emplace(piece, static_cast<std::int32_t>(names_.size()));
        if (!ids_.count("<unk>")) throw std::runtime_error("no pieces.txt");
    }
    Ids encode(const std::string &text) const {
        std::vector<std::string> pieces;
        pieces_.Encode(text, &pieces);
        Ids ids;
        for (const std::string &piece : pieces) {
            const auto found = ids_.find(piece);
            ids.push_back(found == ids_.end() ? ids_.at("<unk>") : found->second);
        }
        ids.push_back(end_);
        return ids;
    }
    std::string decode(const Ids &ids) const {
        std::vector<std::string> pieces;
        for (const std::int32_t id : ids) {
            const std::string &piece = names_.at(static_cast<std::size_t>(id));
            if (id != end_ && piece != "<unk>" && piece != "<pad>") pieces.push_back(piece);
        }
        std::string text;
        pieces_.Decode(pieces, &text);
        return text;
    }

private:
    sentencepiece::SentencePieceProcessor pieces_;
    std::vector<std::string> names_;
    std::unordered_map<std::string, std::int32_t> ids_;
    std::int32_t end_;
};
#endif

int run(int argc, char **argv) {
    const Model model(argv[1]);
    int next = 2;
#ifdef WITH_SENTENCEPIECE
    std::unique_ptr<Tokenizer> tokenizer;
    if (argc > 2 && std::filesystem::is_directory(argv[2])) tokenizer = std::make_unique<Tokenizer>(argv[next++], model);
#endif
    Session session(model, argc > next ? std::atoi(argv[next]) : 1);
    const bool translates = model.info("task") == "translate";
    if (translates && argc > next + 1) session.set("beams", std::atof(argv[next + 1]));
    for (std::string line; std::getline(std::cin, line);) {
#ifdef WITH_SENTENCEPIECE
        if (tokenizer) {
            std::cout << tokenizer->decode(session.translate(tokenizer->encode(line))) << std::endl;
            continue;
        }
#endif
        if (translates)
            print(session.translate(read_ids(line)));
        else
            print(session.embed(read_ids(line)));
    }
    return 0;
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " ARTIFACT [THREADS [BEAMS]] < ids\n";
        return 2;
    }
    try {
        return run(argc, argv);
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return 3;
    }
}
