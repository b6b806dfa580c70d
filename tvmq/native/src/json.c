/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32, MAX_NODES = 1 << 19 };

typedef struct {
    Json *json;
    const uint8_t *at, *end;
    char *free; /* where the next string goes; strings are never longer than their source */
    int depth;
} Reader;

static bool parse_value(Reader *r, uint32_t *place);

static void skip_space(Reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t')) r->at++;
}

static bool take(Reader *r, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, word, length)) return false;
    r->at += length;
    return true;
}

static JsonNode *add_node(Reader *r, uint32_t *place) {
    Json *json = r->json;
    if (json->count >= MAX_NODES || !grow((void **)&json->nodes, &json->room, json->count, sizeof *json->nodes))
        return NULL;
    *place = (uint32_t)json->count++;
    return &json->nodes[*place];
}

static int hex_digit(uint8_t c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The four digits of a \u escape that stands for one character; lone surrogates and zero are refused. */
static bool parse_unicode(Reader *r) {
    uint32_t code = 0;
    for (int i = 0; i < 4; i++) {
        int digit = r->at < r->end ? hex_digit(*r->at++) : -1;
        if (digit < 0) return false;
        code = code * 16 + (uint32_t)digit;
    }
    if (!code || (code >= 0xd800 && code < 0xe000)) return false;
    if (code < 0x80) {
        *r->free++ = (char)code;
    } else if (code < 0x800) {
        *r->free++ = (char)(0xc0 | code >> 6);
        *r->free++ = (char)(0x80 | (code & 63));
    } else {
        *r->free++ = (char)(0xe0 | code >> 12);
        *r->free++ = (char)(0x80 | (code >> 6 & 63));
        *r->free++ = (char)(0x80 | (code & 63));
    }
    return true;
}

/* The rest of a character of UTF-8 whose first byte was lead; overlong forms and surrogates are refused. */
static bool parse_character(Reader *r, uint8_t lead) {
    const int more = lead < 0xc2 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : lead < 0xf5 ? 3 : 0;
    if (!more || r->end - r->at < more) return false;
    const uint8_t second = r->at[0];
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) || (lead == 0xf0 && second < 0x90) ||
        (lead == 0xf4 && second > 0x8f))
        return false;
    *r->free++ = (char)lead;
    for (int i = 0; i < more; i++) {
        if (*r->at >> 6 != 2) return false;
        *r->free++ = (char)*r->at++;
    }
    return true;
}

static bool parse_string(Reader *r, const char **text) {
    static const char ESCAPES[] = "\"\\/bfnrt", MEANT[] = "\"\\/\b\f\n\r\t";
    if (!take(r, "\"")) return false;
    *text = r->free;
    while (r->at < r->end) {
        uint8_t c = *r->at++;
        if (c == '"') {
            *r->free++ = 0;
            return true;
        }
        if (c < 32) return false;
        if (c >= 0x80) {
            if (!parse_character(r, c)) return false;
            continue;
        }
        if (c != '\\') {
            *r->free++ = (char)c;
            continue;
        }
        if (r->at >= r->end) return false;
        c = *r->at++;
        const char *known = c ? strchr(ESCAPES, c) : NULL;
        if (known)
            *r->free++ = MEANT[known - ESCAPES];
        else if (c != 'u' || !parse_unicode(r))
            return false;
    }
    return false;
}

/* value x 10^exponent; exact for what a manifest holds (up to 15 digits). */
static double scaled(double value, int exponent) {
    double power = 1;
    for (int i = exponent < 0 ? -exponent : exponent; i; i--) power *= 10;
    return exponent < 0 ? value / power : value * power;
}

static bool parse_number(Reader *r, JsonNode *node) {
    bool negative = take(r, "-"), fraction = false;
    const uint8_t *start = r->at;
    uint64_t value = 0;
    int digits = 0, exponent = 0;
    while (r->at < r->end && ((*r->at >= '0' && *r->at <= '9') || (*r->at == '.' && !fraction && digits))) {
        if (*r->at == '.') {
            fraction = true;
        } else {
            if (digits < 18) {
                value = value * 10 + (*r->at - '0');
                exponent -= fraction;
            } else {
                exponent += !fraction;
            }
            digits++;
        }
        r->at++;
    }
    if (!digits || r->at[-1] == '.' || (start[0] == '0' && digits > 1 && start[1] != '.')) return false;
    node->kind = JSON_NUMBER;
    node->whole = !fraction && digits <= 18;
    if (r->at < r->end && (*r->at | 32) == 'e') {
        r->at++;
        bool down = take(r, "-");
        if (!down) (void)take(r, "+");
        int shift = 0, count = 0;
        for (; r->at < r->end && *r->at >= '0' && *r->at <= '9'; r->at++, count++)
            if (shift < 1000) shift = shift * 10 + (*r->at - '0');
        if (!count) return false;
        exponent += down ? -shift : shift;
        node->whole = false;
    }
    if (exponent > 308 || exponent < -340) return false;
    node->integer = negative ? -(int64_t)value : (int64_t)value;
    node->number = scaled(negative ? -(double)value : (double)value, exponent);
    return true;
}

/* Members of an object or items of a list, up to its closing bracket. */
static bool parse_children(Reader *r, uint32_t parent, bool object) {
    const char *close = object ? "}" : "]";
    uint32_t last = 0;
    if (++r->depth > MAX_DEPTH) return false;
    skip_space(r);
    if (take(r, close)) return r->depth--, true;
    for (;;) {
        const char *key = NULL;
        uint32_t place;
        skip_space(r);
        if (object) {
            if (!parse_string(r, &key)) return false;
            skip_space(r);
            if (!take(r, ":")) return false;
            skip_space(r);
        }
        if (!parse_value(r, &place)) return false;
        JsonNode *nodes = r->json->nodes;
        nodes[place].key = key;
        if (last)
            nodes[last].next = place;
        else
            nodes[parent].first = place;
        nodes[parent].count++;
        last = place;
        skip_space(r);
        if (take(r, close)) return r->depth--, true;
        if (!take(r, ",")) return false;
    }
}

static bool parse_value(Reader *r, uint32_t *place) {
    JsonNode *node = add_node(r, place);
    if (!node || r->at >= r->end) return false;
    if (take(r, "{")) return node->kind = JSON_OBJECT, parse_children(r, *place, true);
    if (take(r, "[")) return node->kind = JSON_LIST, parse_children(r, *place, false);
    if (*r->at == '"') return node->kind = JSON_TEXT, parse_string(r, &node->text);
    if (take(r, "null")) return true;
    node->kind = JSON_BOOL;
    if (take(r, "true")) return node->number = 1, true;
    if (take(r, "false")) return true;
    return parse_number(r, node);
}

int json_parse(Json *json, const uint8_t *data, size_t size, const char *where, Error *error) {
    *json = (Json){0};
    if (size > INT32_MAX) return fail(error, TVMQ_VERIFICATION, "%s: too long", where);
    json->strings = malloc(size + 1);
    if (!json->strings) return fail(error, TVMQ_RESOURCE, "%s: no memory for %zu bytes", where, size);
    Reader r = {json, data, data + size, json->strings, 0};
    uint32_t root;
    skip_space(&r);
    bool good = parse_value(&r, &root);
    skip_space(&r);
    if (good && r.at == r.end) return 0;
    json_free(json);
    return fail(error, TVMQ_VERIFICATION, "%s: not valid JSON at byte %zu", where, (size_t)(r.at - data));
}

void json_free(Json *json) {
    free(json->nodes);
    free(json->strings);
    *json = (Json){0};
}

const JsonNode *json_first(const Json *json, const JsonNode *parent) {
    return parent && parent->first ? &json->nodes[parent->first] : NULL;
}

const JsonNode *json_next(const Json *json, const JsonNode *node) {
    return node->next ? &json->nodes[node->next] : NULL;
}

const JsonNode *json_get(const Json *json, const JsonNode *object, const char *key) {
    if (!object || object->kind != JSON_OBJECT) return NULL;
    for (const JsonNode *node = json_first(json, object); node; node = json_next(json, node))
        if (!strcmp(node->key, key)) return node;
    return NULL;
}

const char *json_text(const JsonNode *node) { return node && node->kind == JSON_TEXT ? node->text : NULL; }

bool json_count(const JsonNode *node, uint64_t limit, uint64_t *value) {
    if (!node || node->kind != JSON_NUMBER || !node->whole || node->integer < 0) return false;
    *value = (uint64_t)node->integer;
    return *value <= limit;
}
