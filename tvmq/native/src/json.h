/* SPDX-License-Identifier: Apache-2.0
 * A strict, bounded reader of JSON: every byte is accounted for, nothing is guessed. */
#ifndef TVMQ_JSON_H
#define TVMQ_JSON_H

#include "common.h"

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_TEXT, JSON_LIST, JSON_OBJECT } JsonKind;

/* A value; children are linked by their places in Json.nodes, 0 ends a chain (0 is the root itself). */
typedef struct {
    JsonKind kind;
    bool whole;         /* a number without fraction and exponent that fits int64 */
    uint32_t first, next;
    uint32_t count;     /* of children */
    const char *key;    /* of a member of an object, zero-terminated */
    const char *text;   /* JSON_TEXT: zero-terminated; may hold zeros only by an escape, which is refused */
    double number;      /* JSON_NUMBER; JSON_BOOL: 0 or 1 */
    int64_t integer;
} JsonNode;

typedef struct {
    JsonNode *nodes;
    size_t count, room;
    char *strings; /* all keys and texts */
} Json;

/* Parses a document of at most 2^31 bytes and half a million values. where: its name in messages. */
int json_parse(Json *json, const uint8_t *data, size_t size, const char *where, Error *error);
void json_free(Json *json);

/* Member of an object, or NULL (also if object is NULL or something else). */
const JsonNode *json_get(const Json *json, const JsonNode *object, const char *key);
const JsonNode *json_first(const Json *json, const JsonNode *parent);
const JsonNode *json_next(const Json *json, const JsonNode *node);
/* Its text, or NULL if it is none. */
const char *json_text(const JsonNode *node);
/* Whether it is a whole number from 0 to limit, which then is in *value. */
bool json_count(const JsonNode *node, uint64_t limit, uint64_t *value);

#endif
