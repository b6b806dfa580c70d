/* SPDX-License-Identifier: Apache-2.0
 * Greedy and beam search over a batch: the arithmetic of ../../search.py, number for number. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

/* A hypothesis as its last token and the one that it goes on from; -1: the start token before it. */
typedef struct {
    int64_t before;
    int32_t token;
} Node;

typedef struct {
    int64_t node;
    float score;
} Ended;

/* One sentence: its open hypotheses, best first, and its ended ones, best first. */
typedef struct {
    size_t sentence;
    int open_count, ended_count;
    bool open;
    int64_t *nodes;
    float *sums;
    Ended *ended; /* room for beams + 1 */
} Beam;

typedef struct {
    tvmq_session *session;
    SearchOptions options;
    size_t steps;
    Node *nodes;
    size_t node_count, node_room;
    Beam *beams;
    size_t count;
    int32_t *tokens, *parents, *sentences; /* of the rows of the next step */
    float *sums;
    size_t *order;
    int64_t *before; /* open nodes of the sentence that is being advanced */
} Search;

static int64_t add_node(Search *s, int64_t before, int32_t token) {
    if (!grow((void **)&s->nodes, &s->node_room, s->node_count, sizeof *s->nodes)) return -2;
    s->nodes[s->node_count] = (Node){before, token};
    return (int64_t)s->node_count++;
}

static float score_of(const Search *s, float total, size_t length) {
    return total / (float)pow((double)length, s->options.length_penalty);
}

/* Keeps the beams best of the ended hypotheses; of equal ones those that were there first. */
static void end_hypothesis(Search *s, Beam *beam, float total, int64_t node, size_t length) {
    Ended added = {node, score_of(s, total, length)};
    int place = beam->ended_count++;
    while (place > 0 && beam->ended[place - 1].score < added.score) {
        beam->ended[place] = beam->ended[place - 1];
        place--;
    }
    beam->ended[place] = added;
    if (beam->ended_count > s->options.beams) beam->ended_count = s->options.beams;
}

static bool can_improve(const Search *s, const Beam *beam, size_t length) {
    if (beam->ended_count < s->options.beams) return true;
    return !s->options.early_stopping && beam->open_count &&
           score_of(s, beam->sums[0], length) > beam->ended[beam->ended_count - 1].score;
}

/* The k largest of count numbers, best first, the earlier of equal ones first: their places in order. */
static void largest(const float *values, size_t count, size_t k, size_t *order) {
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (kept == k && !(values[i] > values[order[k - 1]])) continue;
        size_t place = kept < k ? kept++ : k - 1;
        while (place > 0 && values[i] > values[order[place - 1]]) {
            order[place] = order[place - 1];
            place--;
        }
        order[place] = i;
    }
}

/* Chooses among each open hypothesis' k best continuations; parents (of this sentence's rows) of those left. */
static int advance(Search *s, Beam *beam, const float *totals, const int32_t *words, size_t k, size_t length,
                   int32_t *parents) {
    const int beams = s->options.beams;
    const bool last = length == s->steps;
    const size_t found = (size_t)beam->open_count * k, best = found < k ? found : k;
    int left = 0;
    largest(totals, found, best, s->order);
    memcpy(s->before, beam->nodes, (size_t)beam->open_count * sizeof *s->before);
    for (size_t rank = 0; rank < best; rank++) {
        const size_t at = s->order[rank], parent = at / k;
        const bool ends = last || words[at] == s->options.eos;
        /* beyond the first beams candidates an ended one is not kept, nor can it go on */
        if (ends ? rank >= (size_t)beams : left >= beams) continue;
        const int64_t node = add_node(s, s->before[parent], words[at]);
        if (node < 0) return fail(&s->session->error, TVMQ_RESOURCE, "no memory for the search");
        if (ends) {
            end_hypothesis(s, beam, totals[at], node, length);
        } else {
            beam->nodes[left] = node;
            beam->sums[left] = totals[at];
            parents[left++] = (int32_t)parent;
        }
    }
    beam->open_count = left;
    beam->open = !last && can_improve(s, beam, length);
    return 0;
}

static int force(Search *s, Beam *beam, size_t length) {
    for (int i = 0; i < beam->open_count; i++) {
        const int64_t node = add_node(s, beam->nodes[i], s->options.forced_eos);
        if (node < 0) return fail(&s->session->error, TVMQ_RESOURCE, "no memory for the search");
        end_hypothesis(s, beam, beam->sums[i], node, length);
    }
    beam->open = false;
    return 0;
}

/* Stores a hypothesis as result number rank of a sentence. */
static int keep(Search *s, size_t sentence, int rank, int64_t node, float score) {
    tvmq_session *session = s->session;
    const size_t first = session->output_count;
    size_t length = 0;
    for (int64_t n = node; n >= 0; n = s->nodes[n].before) length++;
    while (session->output_room < first + length)
        if (!grow((void **)&session->output, &session->output_room, session->output_room, sizeof *session->output))
            return fail(&session->error, TVMQ_RESOURCE, "no memory for the results");
    session->output_count += length;
    size_t at = session->output_count;
    for (int64_t n = node; n >= 0; n = s->nodes[n].before) session->output[--at] = s->nodes[n].token;
    session->hypotheses[sentence * (size_t)s->options.n_best + (size_t)rank] = (Hypothesis){first, length, score};
    return 0;
}

static bool cancelled(const tvmq_session *session) { return atomic_load(&session->cancelled); }

static int stopped(tvmq_session *session) { return fail(&session->error, TVMQ_CANCELLED, "cancelled"); }

static bool told(const tvmq_session *session, size_t sentence, int32_t token) {
    return !session->on_token || !session->on_token(session->user, sentence, token);
}

/* The rows of the next step from the open hypotheses of all open sentences; their number. */
static size_t gather(Search *s) {
    size_t rows = 0;
    for (size_t b = 0; b < s->count; b++) {
        const Beam *beam = &s->beams[b];
        for (int i = 0; beam->open && i < beam->open_count; i++, rows++) {
            s->tokens[rows] = beam->nodes[i] < 0 ? s->options.start : s->nodes[beam->nodes[i]].token;
            s->sentences[rows] = (int32_t)beam->sentence;
            s->sums[rows] = beam->sums[i];
        }
    }
    return rows;
}

static int beam_step(Search *s, size_t rows, size_t length) {
    const size_t k = 2 * (size_t)s->options.beams;
    const float *logp;
    const int32_t *ids;
    tvmq_session *session = s->session;
    if (decoder_step(session, rows, s->tokens, s->parents, s->sentences, k, &logp, &ids)) return session->error.code;
    float *totals = s->sums + s->count * (size_t)s->options.beams;
    size_t row = 0, left = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < k; j++) totals[i * k + j] = logp[i * k + j] + s->sums[i];
    for (size_t b = 0; b < s->count; b++) {
        Beam *beam = &s->beams[b];
        if (!beam->open) continue;
        const size_t width = (size_t)beam->open_count;
        if (advance(s, beam, totals + row * k, ids + row * k, k, length, s->parents + left))
            return session->error.code;
        for (int i = 0; beam->open && i < beam->open_count; i++) s->parents[left++] += (int32_t)row;
        row += width;
    }
    return 0;
}

static int beam_search(Search *s) {
    tvmq_session *session = s->session;
    size_t rows = gather(s);
    for (size_t i = 0; i < rows; i++) s->parents[i] = (int32_t)i;
    for (size_t length = 1; rows && length <= s->steps; length++, rows = gather(s)) {
        if (cancelled(session)) return stopped(session);
        if (length < s->steps || s->options.forced_eos < 0) {
            if (beam_step(s, rows, length)) return session->error.code;
            continue;
        }
        for (size_t b = 0; b < s->count; b++)
            if (s->beams[b].open && force(s, &s->beams[b], length)) return session->error.code;
    }
    for (size_t b = 0; b < s->count; b++) {
        const Beam *beam = &s->beams[b];
        for (int i = 0; i < s->options.n_best && i < beam->ended_count; i++)
            if (keep(s, b, i, beam->ended[i].node, beam->ended[i].score)) return session->error.code;
        const Hypothesis best = session->hypotheses[b * (size_t)s->options.n_best];
        for (size_t i = 0; i < best.count; i++)
            if (!told(session, b, session->output[best.first + i])) return stopped(session);
    }
    return 0;
}

/* The best token at each step; the end token closes a sentence. */
static int greedy_search(Search *s) {
    tvmq_session *session = s->session;
    size_t rows = gather(s);
    for (size_t i = 0; i < rows; i++) s->parents[i] = (int32_t)i;
    for (size_t left = s->steps; rows && left; left--) {
        const bool forced = left == 1 && s->options.forced_eos >= 0;
        const int32_t *ids = NULL;
        const float *logp;
        size_t kept = 0;
        if (cancelled(session)) return stopped(session);
        if (!forced && decoder_step(session, rows, s->tokens, s->parents, s->sentences, 1,
                                    rows == 1 ? NULL : &logp, &ids))
            return session->error.code;
        for (size_t row = 0; row < rows; row++) {
            const int32_t sentence = s->sentences[row], token = forced ? s->options.forced_eos : ids[row];
            Beam *beam = &s->beams[sentence];
            beam->nodes[0] = add_node(s, beam->nodes[0], token);
            if (beam->nodes[0] < 0) return fail(&session->error, TVMQ_RESOURCE, "no memory for the search");
            if (!told(session, (size_t)sentence, token)) return stopped(session);
            if (forced || token == s->options.eos) continue;
            s->tokens[kept] = token, s->sentences[kept] = sentence, s->parents[kept++] = (int32_t)row;
        }
        rows = kept;
    }
    for (size_t b = 0; b < s->count; b++)
        if (keep(s, b, 0, s->beams[b].nodes[0], NAN)) return session->error.code;
    return 0;
}

static bool open_search(Search *s) {
    const size_t beams = (size_t)s->options.beams, rows = s->count * beams;
    int64_t *nodes = calloc(rows, sizeof *nodes);
    float *sums = calloc(rows, sizeof *sums);
    Ended *ended = calloc(rows + s->count, sizeof *ended);
    s->beams = calloc(s->count, sizeof *s->beams);
    s->tokens = calloc(3 * rows, sizeof *s->tokens);
    s->sums = calloc(rows * (1 + 2 * beams), sizeof *s->sums);
    s->order = calloc(2 * beams, sizeof *s->order);
    s->before = calloc(beams, sizeof *s->before);
    if (!nodes || !sums || !ended || !s->beams || !s->tokens || !s->sums || !s->order || !s->before) {
        free(nodes), free(sums), free(ended), free(s->beams);
        s->beams = NULL;
        return false;
    }
    s->parents = s->tokens + rows;
    s->sentences = s->parents + rows;
    for (size_t b = 0; b < s->count; b++) {
        s->beams[b] = (Beam){.sentence = b, .open_count = 1, .open = true, .nodes = nodes + b * beams,
                             .sums = sums + b * beams, .ended = ended + b * (beams + 1)};
        s->beams[b].nodes[0] = -1;
    }
    return true;
}

static void close_search(Search *s) {
    if (s->beams) free(s->beams[0].nodes), free(s->beams[0].sums), free(s->beams[0].ended);
    free(s->beams), free(s->tokens), free(s->sums), free(s->order), free(s->nodes);
    free(s->before);
}

int search(tvmq_session *session, size_t count) {
    Search s = {.session = session, .options = session->options, .count = count};
    const bool forced = s.options.forced_length > 0;
    s.steps = (size_t)(forced ? s.options.forced_length : s.options.max_new_tokens);
    if (forced) s.options.eos = s.options.forced_eos = -1;
    free(session->hypotheses);
    session->hypotheses = calloc(count * (size_t)s.options.n_best, sizeof *session->hypotheses);
    session->sentence_count = session->output_count = 0;
    session->per_sentence = (size_t)s.options.n_best;
    int code = TVMQ_RESOURCE;
    if (session->hypotheses && open_search(&s))
        code = s.options.beams == 1 ? greedy_search(&s) : beam_search(&s);
    else
        fail(&session->error, code, "no memory for the search");
    close_search(&s);
    session->sentence_count = code ? 0 : count;
    return code;
}
