/*
 * Checks JSON (RFC 8259), takes strings out of it and puts strings into it. Nothing is ever rebuilt.
 *
 * Every document here ends with a NUL that stands nowhere else in JSON, so that is where each reader stops.
 * `*at` is the next byte; a reader that returns false leaves it at what it could not read.
 */
#include "plugin.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 128u /* a CNI configuration nests half a dozen levels; this keeps the recursion small */

static const char escapes[] = "\"\\/bfnrt", escaped[] = "\"\\/\b\f\n\r\t";

/* Length of the character at `s`, or 0 if there is none in well-formed UTF-8 (Unicode 15, table 3-7). */
static size_t utf8_length(const char *s)
{
    const unsigned char *b = (const unsigned char *)s;
    size_t n = b[0] < 0x80 ? 1 : b[0] < 0xc2 ? 0 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : b[0] < 0xf5 ? 4 : 0;
    for (size_t i = 1; i < n; i++)
        if ((b[i] & 0xc0) != 0x80)
            return 0;
    /* Overlong forms, surrogates and what lies past U+10FFFF differ from the rest in the second byte. */
    bool outside = (b[0] == 0xe0 && b[1] < 0xa0) || (b[0] == 0xed && b[1] > 0x9f) ||
                   (b[0] == 0xf0 && b[1] < 0x90) || (b[0] == 0xf4 && b[1] > 0x8f);
    return outside ? 0 : n;
}

/* The value of four hexadecimal digits, or -1. */
static long hex4(const char *s)
{
    char digits[5] = "";
    if (strspn(s, "0123456789abcdefABCDEF") < 4)
        return -1;
    memcpy(digits, s, 4);
    return strtol(digits, NULL, 16);
}

static bool take(const char **at, char wanted)
{
    if (**at != wanted)
        return false;
    ++*at;
    return true;
}

static bool take_word(const char **at, const char *word)
{
    size_t length = strlen(word);
    if (strncmp(*at, word, length) != 0)
        return false;
    *at += length;
    return true;
}

static void skip_space(const char **at)
{
    *at += strspn(*at, " \t\n\r");
}

static bool take_token(const char **at, char wanted)
{
    skip_space(at);
    return take(at, wanted);
}

static bool take_digits(const char **at)
{
    size_t count = strspn(*at, "0123456789");
    *at += count;
    return count > 0;
}

static bool take_number(const char **at)
{
    take(at, '-');
    if ((!take(at, '0') && !take_digits(at)) || (take(at, '.') && !take_digits(at)))
        return false;
    if (!take(at, 'e') && !take(at, 'E'))
        return true;
    if (!take(at, '+'))
        take(at, '-');
    return take_digits(at);
}

static bool take_string(const char **at)
{
    if (!take(at, '"'))
        return false;
    while (!take(at, '"')) {
        const char *s = *at;
        size_t n = utf8_length(s);
        if (n == 0 || (n == 1 && *s >= '\0' && *s < ' '))
            return false;
        if (*s == '\\')
            n = s[1] == 'u' && hex4(s + 2) >= 0 ? 6 : s[1] != '\0' && strchr(escapes, s[1]) != NULL ? 2 : 0;
        if (n == 0)
            return false;
        *at += n;
    }
    return true;
}

/* Reads the rest of an object or a list, by `close`. Only the object of the top level has a `visit`. */
static bool take_members(const char **at, char close, unsigned depth, json_visit *visit)
{
    static struct text key; /* one is enough for the top level */
    if (depth > DEPTH_MAX)
        return false;
    if (take_token(at, close))
        return true;
    do {
        skip_space(at);
        const char *start = *at;
        if (close == '}' && (!take_string(at) || !take_token(at, ':')))
            return false;
        const char *name = visit != NULL && json_decode(start, &key) ? key.at : "";
        skip_space(at);
        start = *at;
        bool good = take(at, '{')   ? take_members(at, '}', depth + 1, NULL)
                    : take(at, '[') ? take_members(at, ']', depth + 1, NULL)
                    : **at == '"'   ? take_string(at)
                                    : take_word(at, "true") || take_word(at, "false") ||
                                          take_word(at, "null") || take_number(at);
        if (!good)
            return false;
        if (visit != NULL)
            visit(name, start);
    } while (take_token(at, ','));
    return take_token(at, close);
}

bool json_object(const char *json, size_t length, json_visit *visit, size_t *stopped_at)
{
    const char *at = json;
    bool whole = take_token(&at, '{') && take_members(&at, '}', 1, visit);
    if (whole)
        skip_space(&at);
    if (stopped_at != NULL)
        *stopped_at = (size_t)(at - json);
    return whole && at == json + length;
}

static void add_code_point(struct text *t, long code)
{
    static const long lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    char b[4];
    for (size_t i = n - 1; i > 0; i--, code >>= 6)
        b[i] = (char)(0x80 | (code & 0x3f));
    b[0] = (char)(lead[n] | code);
    text_add(t, b, n);
}

bool json_decode(const char *value, struct text *out)
{
    if (*value != '"')
        return false;
    out->length = 0;
    text_add(out, "", 0);
    /* The string was checked before: every escape is whole, and the closing quote stops each look ahead. */
    for (const char *p = value + 1; *p != '"';) {
        if (*p != '\\') {
            text_add(out, p++, 1);
        } else if (p[1] != 'u') {
            text_add(out, escaped + (strchr(escapes, p[1]) - escapes), 1);
            p += 2;
        } else {
            long code = hex4(p + 2), low = p[6] == '\\' && p[7] == 'u' ? hex4(p + 8) : -1;
            bool pair = code >= 0xd800 && code < 0xdc00 && low >= 0xdc00 && low < 0xe000;
            p += pair ? 12 : 6;
            if (pair)
                code = 0x10000 + (code - 0xd800) * 0x400 + (low - 0xdc00);
            if (code == 0)
                return false;
            add_code_point(out, code >= 0xd800 && code < 0xe000 ? 0xfffd : code);
        }
    }
    return true;
}

void json_encode(struct text *t, const char *before, const char *string)
{
    text_format(t, "%s\"", before);
    for (size_t n; *string != '\0'; string += n > 0 ? n : 1) {
        n = utf8_length(string);
        if (n == 0 || (n == 1 && (*string < ' ' || *string == '"' || *string == '\\')))
            text_format(t, "\\u%04x", n == 0 ? 0xfffdu : (unsigned)*string);
        else
            text_add(t, string, n);
    }
    text_add(t, "\"", 1);
}
