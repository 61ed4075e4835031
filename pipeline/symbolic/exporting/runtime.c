/* A language model of symbolic experts, run from its tables: no library but C's own, no threads, nothing evaluated.
 *
 *   ./model losses tokens.bin [LENGTH]       mean loss of the next token, in nats
 *   ./model sample [OPTIONS] [ID ...]        token ids after these (or after those on standard input)
 *
 * README.md beside this file has the options and the layout of tables.bin. The file is read whole and every size, index
 * and number in it is checked once, here in `load`; what runs afterwards trusts them.
 *
 * D model width, H query heads, T tokens of a window, E experts, I rows and J columns of the key grid, R features that a
 * router's scores are sums of.
 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 3, NAME_BYTES = 40, KNOTS = 9, FUNCTIONS = 22, SPLINE = 255 };
#define EXP_END 10.0f
enum { F32, U8, I16, I32, F16 };                      /* types of tables */
enum { KEYS_IDENTITY, KEYS_SHARED, KEYS_PER_HEAD };   /* sub-keys of a router */
enum { SOFTMAX, JUMPRELU };                           /* its gate */
enum { T0, T1, T2, T3, T4 };                          /* tiers: dense, formula, logic and formula, logic, dropped */

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static void *need(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) die("no memory for %zu times %zu bytes; use a machine with more", count, size);
    return memory;
}

/* ---- the model ---- */

typedef struct {
    uint32_t d_model, layers, heads, kv_heads, vocabulary;
    uint32_t router_heads, rows, columns, row_width, column_width, sub_keys, query_norm, gate, pairs_per_head;
    uint32_t axis_bias, router_group, experts, coordinates, places, knots, window, context;
    uint32_t features, terms; /* R, 0 where scores are sums of the state itself; terms of a score, 0 for all of R */
} Sizes;

typedef struct {
    double rope_theta, norm_eps, query_norm_eps, axis_norm_eps, deviations, tie_margin;
} Numbers;

typedef struct {
    int there;
    const float *features, *intercept, *term_coefficient;
    const int16_t *term_index;
    const float *query, *query_mean, *query_var, *row_keys, *column_keys;
    const float *row_mean, *row_var, *column_mean, *column_var, *threshold;
} Router;

typedef struct {
    const float *attention_norm, *q, *k, *v, *o, *expert_norm;
    Router router; /* not there where the block uses the routing of one below */
    const int32_t *cell_start;
    const float *row_bias, *column_bias;
    uint32_t dense, literals, gates, splines;
    const uint8_t *tier, *code;
    const float *scale, *offset;
    const int16_t *index;
    const float *coefficient, *intercept;
    const int32_t *dense_row;
    const float *dense_u;
    const int32_t *rule;
    const uint8_t *gate;
    const int32_t *wire_a, *wire_b;
    const uint8_t *member, *literal_offset;
    const int32_t *spline_row;
    const float *spline_low, *spline_high, *spline_coefficient;
    const uint8_t *output; /* v: rows of two int4 a byte, elements j and j + D / 2 */
    const float *output_scale;
    uint32_t *logical, num_logical; /* the experts of tiers T2 and T3 */
} Layer;

typedef struct {
    Sizes s;
    Numbers n;
    const float *embedding, *norm, *head;
    Layer *layer;
} Model;

/* ---- reading tables.bin ---- */

typedef struct {
    const char *path;
    uint8_t *bytes;
    uint64_t size, at;
} File;

static File read_file(const char *path) {
    File file = {path, NULL, 0, 0};
    FILE *stream = fopen(path, "rb");
    if (!stream) die("%s cannot be opened: %s", path, strerror(errno));
    uint64_t room = 1 << 16;
    file.bytes = need(room, 1);
    for (size_t got; (got = fread(file.bytes + file.size, 1, room - file.size, stream)) > 0;) {
        file.size += got;
        if (file.size < room) continue;
        room *= 2;
        file.bytes = realloc(file.bytes, room);
        if (!file.bytes) die("no memory for %s; use a machine with more", path);
    }
    if (ferror(stream)) die("%s cannot be read: %s", path, strerror(errno));
    fclose(stream);
    return file;
}

static const void *take(File *file, uint64_t bytes, const char *what) {
    if (bytes > file->size - file->at)
        die("%s ends at byte %llu within %s, which wants %llu bytes from %llu; copy the file again", file->path,
            (unsigned long long)file->size, what, (unsigned long long)bytes, (unsigned long long)file->at);
    const void *found = file->bytes + file->at;
    file->at += bytes;
    return found;
}

static float half_to_float(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float size = exponent ? ldexpf((float)(fraction + 1024), exponent - 25) : ldexpf((float)fraction, -24);
    return half >> 15 ? -size : size;
}

static void check_numbers(const File *file, const char *name, const void *values, int type, uint64_t count) {
    /* A head whose threshold is minus infinity takes every pair. */
    const int may_be_minus_infinity = strstr(name, ".threshold") != NULL, is_variance = strstr(name, "_var") != NULL;
    for (uint64_t i = 0; i < count; i++) {
        const float value = type == F16 ? half_to_float(((const uint16_t *)values)[i]) : ((const float *)values)[i];
        const int infinite = type == F16 && (((const uint16_t *)values)[i] >> 10 & 31) == 31;
        if (!infinite && isfinite(value) && !(is_variance && value < 0)) continue;
        if (may_be_minus_infinity && value == -INFINITY) continue;
        die("%s: table %s holds a value that is not finite, or a variance below 0, at %llu; copy the file again or "
            "export it anew", file->path, name, (unsigned long long)i);
    }
}

static const void *table(File *file, int layer, const char *part, int type, uint64_t count) {
    static const char *types[] = {"float32", "uint8", "int16", "int32", "float16"};
    static const uint8_t bytes[] = {4, 1, 2, 4, 2};
    char name[NAME_BYTES], found[NAME_BYTES + 1] = {0};
    if (layer < 0)
        snprintf(name, sizeof name, "%s", part);
    else
        snprintf(name, sizeof name, "layers.%d.%s", layer, part);
    const uint64_t place = file->at;
    uint32_t kind[2];
    uint64_t size;
    memcpy(found, take(file, NAME_BYTES, name), NAME_BYTES);
    memcpy(kind, take(file, sizeof kind, name), sizeof kind);
    memcpy(&size, take(file, sizeof size, name), sizeof size);
    if (strcmp(found, name)) {
        for (char *c = found; *c; c++)
            if (*c < ' ' || *c > '~') *c = '?';
        die("%s: at byte %llu is a table called '%s' where '%s' was wanted; copy the file again", file->path,
            (unsigned long long)place, found, name);
    }
    if (kind[0] != (uint32_t)type || kind[1] != 0 || size != count)
        die("%s: table %s at byte %llu holds %llu values of type %u where the header wants %llu of %s; copy the file "
            "again", file->path, name, (unsigned long long)place, (unsigned long long)size, kind[0],
            (unsigned long long)count, types[type]);
    if (count > file->size) take(file, count, name); /* refused there, before a product can overflow */
    const void *values = take(file, count * bytes[type], name);
    const uint64_t padding = (8 - file->at % 8) % 8;
    take(file, padding, name);
    if (type == F32 || type == F16) check_numbers(file, name, values, type, count);
    return values;
}

static int64_t integer(const void *values, int type, uint64_t i) {
    if (type == U8) return ((const uint8_t *)values)[i];
    return type == I16 ? ((const int16_t *)values)[i] : ((const int32_t *)values)[i];
}

/* The same, of integers that must lie in a range. */
static const void *indices(File *file, int layer, const char *part, int type, uint64_t count, int64_t most) {
    const void *values = table(file, layer, part, type, count);
    for (uint64_t i = 0; i < count; i++) {
        const int64_t value = integer(values, type, i);
        if (value < 0 || value > most)
            die("%s: table layers.%d.%s holds %lld at %llu, outside 0 to %lld; copy the file again or export it anew",
                file->path, layer, part, (long long)value, (unsigned long long)i, (long long)most);
    }
    return values;
}

static uint64_t checksum(const uint8_t *bytes, uint64_t count) { /* CRC-32, as of zip files */
    uint32_t step[256], sum = 0xFFFFFFFF;
    for (uint32_t i = 0; i < 256; i++) {
        step[i] = i;
        for (int bit = 0; bit < 8; bit++) step[i] = step[i] >> 1 ^ (step[i] & 1 ? 0xEDB88320 : 0);
    }
    for (uint64_t i = 0; i < count; i++) sum = sum >> 8 ^ step[(sum ^ bytes[i]) & 255];
    return sum ^ 0xFFFFFFFF;
}

static void check_sizes(const File *file, const Sizes *s, const Numbers *n) {
    const struct {
        const char *name;
        uint32_t value, least, most;
    } limits[] = {
        {"d_model", s->d_model, 2, 1 << 15}, {"layers", s->layers, 1, 256}, {"heads", s->heads, 1, 256},
        {"kv_heads", s->kv_heads, 1, 256}, {"vocabulary", s->vocabulary, 2, 1 << 16},
        {"router_heads", s->router_heads, 1, 64}, {"rows", s->rows, 2, 1 << 15}, {"columns", s->columns, 2, 1 << 21},
        {"row_width", s->row_width, 1, 1 << 15}, {"column_width", s->column_width, 1, 1 << 21},
        {"sub_keys", s->sub_keys, 0, 2}, {"query_norm", s->query_norm, 0, 1}, {"gate", s->gate, 0, 1},
        {"pairs_per_head", s->pairs_per_head, 1, 1u << 30}, {"axis_bias", s->axis_bias, 0, 1},
        {"router_group", s->router_group, 1, 1u << 30}, {"experts", s->experts, 1, 1u << 30},
        {"coordinates", s->coordinates, 1, 4096}, {"places", s->places, 1, 64}, {"knots", s->knots, KNOTS, KNOTS},
        {"window", s->window, 1, 1 << 16}, {"context", s->context, 1, 1 << 16},
        {"features", s->features, 0, 4096}, {"terms", s->terms, 0, 4096},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].value < limits[i].least || limits[i].value > limits[i].most)
            die("%s: the header's %s is %u, outside %u to %u; copy the file again", file->path, limits[i].name,
                limits[i].value, limits[i].least, limits[i].most);
    if (s->d_model % (2 * s->heads) || s->heads % s->kv_heads)
        die("%s: the header's d_model %u, heads %u and kv_heads %u do not divide; copy the file again", file->path,
            s->d_model, s->heads, s->kv_heads);
    const int identity = s->sub_keys == KEYS_IDENTITY;
    if (identity ? s->row_width != s->rows || s->column_width != s->columns : s->row_width != s->column_width)
        die("%s: the header's row_width %u and column_width %u are not those of its sub-keys; copy the file again",
            file->path, s->row_width, s->column_width);
    if (s->gate == SOFTMAX && (s->axis_bias || s->pairs_per_head > s->rows || s->pairs_per_head > s->columns))
        die("%s: the header's pairs_per_head %u or axis_bias %u does not go with its softmax gate; copy the file again",
            file->path, s->pairs_per_head, s->axis_bias);
    if (s->features ? !identity || s->query_norm || s->terms > s->features : s->terms)
        die("%s: the header's features %u and terms %u do not go with its sub_keys and query_norm; copy the file again",
            file->path, s->features, s->terms);
    const double *number = &n->rope_theta;
    for (int i = 0; i < 6; i++)
        if (!isfinite(number[i]) || (i != 4 && number[i] < 0))
            die("%s: number %d of the header is %g; copy the file again", file->path, i, number[i]);
}

static void load_router(File *file, int l, const Sizes *s, Router *router) {
    const uint64_t width = (uint64_t)s->router_heads * (s->row_width + s->column_width);
    const uint64_t sets = s->sub_keys == KEYS_PER_HEAD ? s->router_heads : 1;
    router->there = 1;
    if (s->features) {
        router->features = table(file, l, "features", F32, (uint64_t)s->features * s->d_model);
        router->intercept = table(file, l, "score_intercept", F32, width);
    }
    if (s->terms) {
        router->term_index = indices(file, l, "term_index", I16, width * s->terms, (int64_t)s->features - 1);
        router->term_coefficient = table(file, l, "term_coefficient", F32, width * s->terms);
    } else {
        router->query = table(file, l, "query", F32, width * (s->features ? s->features : s->d_model));
    }
    if (s->query_norm) {
        router->query_mean = table(file, l, "query_mean", F32, width);
        router->query_var = table(file, l, "query_var", F32, width);
    }
    if (s->sub_keys != KEYS_IDENTITY) {
        router->row_keys = table(file, l, "row_keys", F32, sets * s->rows * s->row_width);
        router->column_keys = table(file, l, "column_keys", F32, sets * s->columns * s->column_width);
    }
    if (s->gate == JUMPRELU) {
        router->row_mean = table(file, l, "row_mean", F32, s->router_heads);
        router->row_var = table(file, l, "row_var", F32, s->router_heads);
        router->column_mean = table(file, l, "column_mean", F32, s->router_heads);
        router->column_var = table(file, l, "column_var", F32, s->router_heads);
        router->threshold = table(file, l, "threshold", F32, s->router_heads);
    }
}

/* Each gate reads literals and gates before it. */
static void check_wires(const File *file, int l, const char *part, const int32_t *wire, const Layer *layer) {
    for (uint32_t g = 0; g < layer->gates; g++)
        if (wire[g] >= (int64_t)layer->literals + g)
            die("%s: table layers.%d.%s holds %d at %u, a cycle: its gate's own output is wire %llu, and it reads those "
                "below; copy the file again or export it anew", file->path, l, part, wire[g], g,
                (unsigned long long)layer->literals + g);
}

static void load_experts(File *file, int l, const Sizes *s, Layer *layer) {
    const uint64_t E = s->experts, D = s->d_model, cells = (uint64_t)s->rows * s->columns;
    const int64_t last_dense = layer->dense ? layer->dense - 1 : 0;
    const int64_t last_gate = layer->gates ? layer->gates - 1 : 0;
    const int64_t last_wire = (int64_t)layer->literals + layer->gates - 1;
    const int64_t last_spline = layer->splines ? layer->splines - 1 : 0;
    layer->cell_start = indices(file, l, "cell_start", I32, cells + 1, (int64_t)E);
    for (uint64_t c = 0; c <= cells; c++)
        if ((c == 0 && layer->cell_start[c] != 0) || (c == cells && (uint64_t)layer->cell_start[c] != E) ||
            (c > 0 && layer->cell_start[c] < layer->cell_start[c - 1]))
            die("%s: table layers.%d.cell_start holds %d at %llu and does not rise from 0 to %llu; copy the file again",
                file->path, l, layer->cell_start[c], (unsigned long long)c, (unsigned long long)E);
    if (s->axis_bias) {
        layer->row_bias = table(file, l, "row_bias", F32, s->rows * D);
        layer->column_bias = table(file, l, "column_bias", F32, s->columns * D);
    }
    layer->tier = indices(file, l, "tier", U8, E, T4);
    layer->code = indices(file, l, "code", U8, E, SPLINE);
    layer->scale = table(file, l, "scale", F32, E);
    layer->offset = table(file, l, "offset", F32, E);
    layer->index = indices(file, l, "index", I16, E * s->coordinates, (int64_t)D - 1);
    layer->coefficient = table(file, l, "coefficient", F32, E * s->coordinates);
    layer->intercept = table(file, l, "intercept", F32, E);
    layer->dense_row = indices(file, l, "dense_row", I32, E, last_dense);
    layer->dense_u = table(file, l, "dense_u", F32, layer->dense * D);
    layer->rule = indices(file, l, "rule", I32, E, last_gate);
    layer->gate = indices(file, l, "gate", U8, layer->gates, 15);
    layer->wire_a = indices(file, l, "wire_a", I32, layer->gates, last_wire);
    layer->wire_b = indices(file, l, "wire_b", I32, layer->gates, last_wire);
    check_wires(file, l, "wire_a", layer->wire_a, layer);
    check_wires(file, l, "wire_b", layer->wire_b, layer);
    layer->member = indices(file, l, "member", U8, (uint64_t)layer->literals * s->vocabulary, 1);
    layer->literal_offset = indices(file, l, "literal_offset", U8, layer->literals, s->places - 1);
    layer->spline_row = indices(file, l, "spline_row", I32, E, last_spline);
    layer->spline_low = table(file, l, "spline_low", F32, layer->splines);
    layer->spline_high = table(file, l, "spline_high", F32, layer->splines);
    layer->spline_coefficient = table(file, l, "spline_coefficient", F32, layer->splines * (uint64_t)(KNOTS + 2));
    layer->output = table(file, l, "v", U8, E * (D / 2));
    const uint16_t *half = table(file, l, "v_scale", F16, E);
    float *scale = need(E, sizeof *scale);
    for (uint64_t e = 0; e < E; e++) scale[e] = half_to_float(half[e]);
    layer->output_scale = scale;
    for (uint32_t w = 0; w < layer->splines; w++)
        if (!(layer->spline_low[w] < layer->spline_high[w]))
            die("%s: table layers.%d.spline_low is not below spline_high at %u; copy the file again", file->path, l, w);
    layer->logical = need(E, sizeof *layer->logical);
    for (uint32_t e = 0; e < E; e++) {
        const int logic = layer->tier[e] == T2 || layer->tier[e] == T3;
        if (logic) layer->logical[layer->num_logical++] = e;
        const char *wrong = NULL;
        if (layer->tier[e] == T0 && !layer->dense) wrong = "dense_row";
        if (logic && !layer->gates) wrong = "rule";
        if (layer->code[e] == SPLINE && !layer->splines) wrong = "spline_row";
        if (wrong)
            die("%s: table layers.%d.%s points into a table without rows at %u; copy the file again", file->path, l,
                wrong, e);
        if (layer->code[e] >= FUNCTIONS && layer->code[e] != SPLINE)
            die("%s: table layers.%d.code holds %d at %u, which is no function; copy the file again or export it anew",
                file->path, l, layer->code[e], e);
    }
}

static Model load(const char *path) {
    const uint16_t probe = 1;
    if (*(const uint8_t *)&probe != 1) die("tables are little endian, and this machine is not; use one that is");
    File file = read_file(path);
    Model model;
    memset(&model, 0, sizeof model);
    Sizes *s = &model.s;
    uint32_t version[2];
    uint64_t promised[2];
    const char *header = "the header";
    if (file.size < 8 || memcmp(take(&file, 8, header), "LEGIBLE1", 8))
        die("%s does not begin with LEGIBLE1: it holds no tables of such a model; give the tables.bin of an export",
            path);
    memcpy(version, take(&file, sizeof version, header), sizeof version);
    const uint32_t header_bytes = 8 + sizeof version + sizeof promised + sizeof *s + sizeof model.n;
    if (version[0] != VERSION || version[1] != header_bytes)
        die("%s is of version %u with a header of %u bytes; this program reads version %d with %u: use the program "
            "that was exported with it", path, version[0], version[1], VERSION, header_bytes);
    memcpy(promised, take(&file, sizeof promised, header), sizeof promised);
    memcpy(s, take(&file, sizeof *s, header), sizeof *s);
    memcpy(&model.n, take(&file, sizeof model.n, header), sizeof model.n);
    check_sizes(&file, s, &model.n);
    const uint64_t D = s->d_model, kv = D / s->heads * s->kv_heads;
    model.layer = need(s->layers, sizeof *model.layer);
    const int32_t *blocks = table(&file, -1, "blocks", I32, 4 * (uint64_t)s->layers);
    model.embedding = table(&file, -1, "embedding", F32, s->vocabulary * D);
    for (uint32_t l = 0; l < s->layers; l++) {
        Layer *layer = &model.layer[l];
        for (int i = 0; i < 4; i++)
            if (blocks[4 * l + i] < 0) die("%s: table blocks holds %d at %u; copy the file again", path,
                                           blocks[4 * l + i], 4 * l + (uint32_t)i);
        layer->dense = (uint32_t)blocks[4 * l];
        layer->literals = (uint32_t)blocks[4 * l + 1];
        layer->gates = (uint32_t)blocks[4 * l + 2];
        layer->splines = (uint32_t)blocks[4 * l + 3];
        layer->attention_norm = table(&file, (int)l, "attention_norm", F32, D);
        layer->q = table(&file, (int)l, "q", F32, D * D);
        layer->k = table(&file, (int)l, "k", F32, kv * D);
        layer->v = table(&file, (int)l, "v_attention", F32, kv * D);
        layer->o = table(&file, (int)l, "o", F32, D * D);
        layer->expert_norm = table(&file, (int)l, "expert_norm", F32, D);
        if (l % s->router_group == 0) load_router(&file, (int)l, s, &layer->router);
        load_experts(&file, (int)l, s, layer);
    }
    model.norm = table(&file, -1, "norm", F32, D);
    model.head = table(&file, -1, "head", F32, s->vocabulary * D);
    if (file.at != file.size || promised[0] != file.size)
        die("%s has %llu bytes where its header says %llu and its tables end at %llu; copy the file again", path,
            (unsigned long long)file.size, (unsigned long long)promised[0], (unsigned long long)file.at);
    const uint32_t summed_from = 8 + sizeof version + sizeof promised;
    const uint64_t sum = checksum(file.bytes + summed_from, file.size - summed_from);
    if (sum != promised[1])
        die("%s: the tables' checksum is %08llx where the header says %08llx: a byte has changed; copy the file "
            "again", path, (unsigned long long)sum, (unsigned long long)promised[1]);
    return model;
}

/* ---- one token ---- */

typedef struct {
    uint32_t capacity, length; /* positions that fit, and that are filled */
    uint16_t *token;
    float *keys, *values; /* of the attention: (layers, capacity, kv width) */
    float *turn;          /* (capacity, head width): cosines, then sines */
    float *x, *h, *q, *mixed, *weight, *y, *feature, *query, *row, *column, *row_gate, *column_gate, *logits;
    uint32_t *passing, pairs, room;
    int64_t *cell; /* what the router of the last block that has one reaches */
    float *gate;
    uint8_t *wire; /* literals, then gates, of one block */
} State;

static State new_state(const Model *model, uint32_t capacity) {
    const Sizes *s = &model->s;
    const uint64_t D = s->d_model, width = D / s->heads, kv = width * s->kv_heads;
    const uint64_t queries = (uint64_t)s->router_heads * (s->row_width + s->column_width);
    State state;
    memset(&state, 0, sizeof state);
    state.capacity = capacity;
    state.token = need(capacity, sizeof *state.token);
    state.keys = need(s->layers * capacity * kv, sizeof(float));
    state.values = need(s->layers * capacity * kv, sizeof(float));
    state.turn = need(capacity * width, sizeof(float));
    float **of_width[] = {&state.x, &state.h, &state.q, &state.mixed, &state.y};
    for (int i = 0; i < 5; i++) *of_width[i] = need(D, sizeof(float));
    state.weight = need(capacity, sizeof(float));
    state.feature = need(s->features, sizeof(float));
    state.query = need(queries, sizeof(float));
    state.row = need(s->rows, sizeof(float)), state.column = need(s->columns, sizeof(float));
    state.row_gate = need(s->rows, sizeof(float)), state.column_gate = need(s->columns, sizeof(float));
    state.passing = need((uint64_t)s->rows + s->columns, sizeof *state.passing);
    state.logits = need(s->vocabulary, sizeof(float));
    uint64_t wires = 0;
    for (uint32_t l = 0; l < s->layers; l++) {
        const uint64_t own = (uint64_t)model->layer[l].literals + model->layer[l].gates;
        if (own > wires) wires = own;
    }
    state.wire = need(wires, 1);
    for (uint32_t t = 0; t < capacity; t++)
        for (uint32_t i = 0; i < width / 2; i++) {
            const float angle = (float)t * powf((float)model->n.rope_theta, -(float)(2 * i) / (float)width);
            state.turn[t * width + i] = cosf(angle);
            state.turn[t * width + width / 2 + i] = sinf(angle);
        }
    return state;
}

static float dot(const float *restrict a, const float *restrict b, uint32_t count) {
    float sum[4] = {0}, total = 0;
    uint32_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; j++) sum[j] += a[i + j] * b[i + j];
    for (; i < count; i++) total += a[i] * b[i];
    return total + (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void add(float *restrict y, float weight, const float *restrict x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) y[i] += weight * x[i];
}

/* Matrices lie by columns, so that compilers make vectors of the sums without leave to reorder any: six times as fast
 * as dot products with rows (gcc 12, -O3). */
static void product(const float *matrix, const float *x, uint32_t rows, uint32_t columns, float *out) {
    memset(out, 0, rows * sizeof *out);
    for (uint32_t c = 0; c < columns; c++) add(out, x[c], matrix + (uint64_t)c * rows, rows);
}

static void rms_norm(const float *x, const float *weight, double eps, uint32_t count, float *out) {
    const float factor = 1 / sqrtf(dot(x, x, count) / (float)count + (float)eps);
    for (uint32_t i = 0; i < count; i++) out[i] = x[i] * factor * weight[i];
}

static void rotate(float *heads, uint32_t count, uint32_t width, const float *turn) {
    const uint32_t half = width / 2;
    for (uint32_t h = 0; h < count; h++, heads += width)
        for (uint32_t i = 0; i < half; i++) {
            const float first = heads[i], second = heads[half + i], cosine = turn[i], sine = turn[half + i];
            heads[i] = first * cosine - second * sine;
            heads[half + i] = second * cosine + first * sine;
        }
}

static void attend(const Model *model, State *state, uint32_t l, uint32_t t) {
    const Sizes *s = &model->s;
    const Layer *layer = &model->layer[l];
    const uint32_t width = s->d_model / s->heads, kv = width * s->kv_heads, group = s->heads / s->kv_heads;
    float *keys = state->keys + (uint64_t)l * state->capacity * kv;
    float *values = state->values + (uint64_t)l * state->capacity * kv, *weight = state->weight;
    product(layer->q, state->h, s->d_model, s->d_model, state->q);
    product(layer->k, state->h, kv, s->d_model, keys + (uint64_t)t * kv);
    product(layer->v, state->h, kv, s->d_model, values + (uint64_t)t * kv);
    rotate(state->q, s->heads, width, state->turn + (uint64_t)t * width);
    rotate(keys + (uint64_t)t * kv, s->kv_heads, width, state->turn + (uint64_t)t * width);
    memset(state->mixed, 0, s->d_model * sizeof(float));
    for (uint32_t h = 0; h < s->heads; h++) {
        const uint32_t column = h / group * width;
        float most = -INFINITY, total = 0;
        for (uint32_t i = 0; i <= t; i++) {
            weight[i] = dot(state->q + h * width, keys + (uint64_t)i * kv + column, width) / sqrtf((float)width);
            if (weight[i] > most) most = weight[i];
        }
        for (uint32_t i = 0; i <= t; i++) total += weight[i] = expf(weight[i] - most);
        for (uint32_t i = 0; i <= t; i++)
            add(state->mixed + h * width, weight[i] / total, values + (uint64_t)i * kv + column, width);
    }
    product(layer->o, state->mixed, s->d_model, s->d_model, state->y);
    add(state->x, 1, state->y, s->d_model);
}

static void reach(State *state, int64_t cell, float gate) {
    if (state->pairs == state->room) {
        state->room = state->room ? 2 * state->room : 256;
        state->cell = realloc(state->cell, state->room * sizeof *state->cell);
        state->gate = realloc(state->gate, state->room * sizeof *state->gate);
        if (!state->cell || !state->gate) die("no memory for %u pairs; use a machine with more", state->room);
    }
    state->cell[state->pairs] = cell;
    state->gate[state->pairs++] = gate;
}

/* Inserts into the k best so far, best first; of equal scores the earlier stays ahead. */
static void keep_best(float *best, int64_t *which, uint32_t k, uint32_t *count, float score, int64_t index) {
    if (*count == k && !(score > best[k - 1])) return;
    uint32_t place = *count < k ? (*count)++ : k - 1;
    for (; place > 0 && best[place - 1] < score; place--) {
        best[place] = best[place - 1];
        which[place] = which[place - 1];
    }
    best[place] = score;
    which[place] = index;
}

/* PEER alg. 1: the k best sums of a row and a column score; rank (i, j) is beaten by (i + 1)(j + 1) - 1 others. */
static void route_softmax(const Sizes *s, State *state) {
    const uint32_t k = s->pairs_per_head;
    float *best = need(3 * (uint64_t)k, sizeof *best), total = 0;
    int64_t *which = need(3 * (uint64_t)k, sizeof *which);
    uint32_t rows = 0, columns = 0, sums = 0;
    for (uint32_t r = 0; r < s->rows; r++) keep_best(best, which, k, &rows, state->row[r], r);
    for (uint32_t c = 0; c < s->columns; c++) keep_best(best + k, which + k, k, &columns, state->column[c], c);
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t j = 0; (uint64_t)(i + 1) * (j + 1) <= k; j++)
            keep_best(best + 2 * k, which + 2 * k, k, &sums, best[i] + best[k + j],
                      which[i] * s->columns + which[k + j]);
    const float most = best[2 * k];
    for (uint32_t i = 0; i < k; i++) total += best[2 * k + i] = expf(best[2 * k + i] - most);
    for (uint32_t i = 0; i < k; i++) reach(state, which[2 * k + i], best[2 * k + i] / total);
    free(best);
    free(which);
}

/* Scores to log gates, in place, of the sub-keys that pass the axis threshold; the best one always does. */
static uint32_t log_gates(float *score, uint32_t count, float mean, float var, const Numbers *n, uint32_t *passing) {
    const float factor = 1 / sqrtf(var + (float)n->axis_norm_eps);
    float best = -INFINITY, most = -INFINITY, total = 0;
    uint32_t passed = 0;
    for (uint32_t i = 0; i < count; i++) best = fmaxf(best, (score[i] - mean) * factor);
    const float limit = fminf(best - (float)n->tie_margin, (float)n->deviations);
    for (uint32_t i = 0; i < count; i++)
        if (!((score[i] - mean) * factor < limit)) passing[passed++] = i, most = fmaxf(most, score[i]);
    for (uint32_t i = 0; i < passed; i++) total += expf(score[passing[i]] - most);
    for (uint32_t i = 0; i < passed; i++) score[passing[i]] = score[passing[i]] - most - logf(total);
    return passed;
}

static void route_jump(const Model *model, const Router *router, uint32_t head, State *state) {
    const Sizes *s = &model->s;
    const Numbers *n = &model->n;
    uint32_t *rows = state->passing, *columns = state->passing + s->rows;
    const uint32_t num_rows = log_gates(state->row, s->rows, router->row_mean[head], router->row_var[head], n, rows);
    const uint32_t num_columns =
        log_gates(state->column, s->columns, router->column_mean[head], router->column_var[head], n, columns);
    for (uint32_t i = 0; i < num_rows; i++) {
        const float a = state->row[rows[i]];
        state->row_gate[rows[i]] += expf(a);
        for (uint32_t j = 0; j < num_columns; j++) {
            const float sum = a + state->column[columns[j]];
            if (sum > router->threshold[head]) reach(state, (int64_t)rows[i] * s->columns + columns[j], expf(sum));
        }
    }
    for (uint32_t j = 0; j < num_columns; j++) state->column_gate[columns[j]] += expf(state->column[columns[j]]);
}

static void route(const Model *model, const Router *router, State *state) {
    const Sizes *s = &model->s;
    const uint64_t row_queries = (uint64_t)s->router_heads * s->row_width;
    const uint64_t queries = row_queries + (uint64_t)s->router_heads * s->column_width;
    if (s->features) product(router->features, state->h, s->features, s->d_model, state->feature);
    if (s->terms)
        for (uint64_t i = 0; i < queries; i++) {
            const int16_t *index = router->term_index + i * s->terms;
            const float *coefficient = router->term_coefficient + i * s->terms;
            float sum = 0;
            for (uint32_t k = 0; k < s->terms; k++) sum += coefficient[k] * state->feature[index[k]];
            state->query[i] = sum;
        }
    else if (s->features)
        product(router->query, state->feature, (uint32_t)queries, s->features, state->query);
    else
        product(router->query, state->h, (uint32_t)queries, s->d_model, state->query);
    for (uint64_t i = 0; s->features && i < queries; i++) state->query[i] += router->intercept[i];
    const float eps = (float)model->n.query_norm_eps;
    for (uint64_t i = 0; s->query_norm && i < queries; i++)
        state->query[i] = (state->query[i] - router->query_mean[i]) / sqrtf(router->query_var[i] + eps);
    state->pairs = 0;
    memset(state->row_gate, 0, s->rows * sizeof(float));
    memset(state->column_gate, 0, s->columns * sizeof(float));
    for (uint32_t head = 0; head < s->router_heads; head++) {
        const float *row = state->query + (uint64_t)head * s->row_width;
        const float *column = state->query + row_queries + (uint64_t)head * s->column_width;
        if (s->sub_keys == KEYS_IDENTITY) {
            memcpy(state->row, row, s->rows * sizeof(float));
            memcpy(state->column, column, s->columns * sizeof(float));
        } else {
            const uint64_t set = s->sub_keys == KEYS_PER_HEAD ? head : 0;
            product(router->row_keys + set * s->rows * s->row_width, row, s->rows, s->row_width, state->row);
            product(router->column_keys + set * s->columns * s->column_width, column, s->columns, s->column_width,
                    state->column);
        }
        if (s->gate == SOFTMAX)
            route_softmax(s, state);
        else
            route_jump(model, router, head, state);
    }
}

/* A cubic B-spline on evenly spaced knots by its four local weights; constant outside its range. */
static float spline(const Layer *layer, uint32_t row, float z) {
    const float low = layer->spline_low[row], high = layer->spline_high[row];
    const float share = (z - low) / (high - low);
    const float place = (share < 0 ? 0 : share > 1 ? 1 : share) * (KNOTS - 1); /* nan stays */
    const int cell = place < KNOTS - 2 ? (int)place : KNOTS - 2;
    const float t = place - (float)cell, r = 1 - t;
    const float *c = layer->spline_coefficient + (uint64_t)row * (KNOTS + 2) + cell;
    const float inner = (3 * t * t * t - 6 * t * t + 4) * c[1] + (-3 * t * t * t + 3 * t * t + 3 * t + 1) * c[2];
    return (r * r * r * c[0] + inner + t * t * t * c[3]) / 6;
}

static float function_of(const Layer *layer, uint32_t expert, float z) {
    const float positive = z < 0 ? 0 : z;
    switch (layer->code[expert]) {
        case 0: return 1;
        case 1: return z;
        case 2: return z * z;
        case 3: return positive;
        case 4: return positive * positive;
        case 5: return 0.5f * z * (1 + erff(z * 0.70710678f));
        case 6: return z / (1 + expf(-z));
        case 7: return 1 / (1 + expf(-z));
        case 8: return tanhf(z);
        case 9: return z > 20 ? z : log1pf(expf(z));
        case 10: return fabsf(z);
        case 11: return expf(-z * z);
        case 12: return z * z * z;
        case 13: return z * z * (z * z);
        case 14: return z * z * (z * z) * z;
        case 15: return copysignf(sqrtf(fabsf(z)), z);
        case 16: return fabsf(z) * sqrtf(fabsf(z));
        case 17: return expf(z > EXP_END ? EXP_END : z);
        case 18: return copysignf(log1pf(fabsf(z)), z);
        case 19: return sinf(z);
        case 20: return cosf(z);
        case 21: return atanf(z);
        default: return spline(layer, (uint32_t)layer->spline_row[expert], z);
    }
}

/* y += gate * (scale * f(z) + offset) * v */
static void fire(const Sizes *s, const Layer *layer, uint32_t e, float gate, const float *x, float *restrict y) {
    const uint32_t half = s->d_model / 2;
    float z = 0;
    if (layer->tier[e] == T0) {
        z = dot(layer->dense_u + (uint64_t)layer->dense_row[e] * s->d_model, x, s->d_model);
    } else {
        const uint64_t first = (uint64_t)e * s->coordinates;
        for (uint32_t k = 0; k < s->coordinates; k++) z += layer->coefficient[first + k] * x[layer->index[first + k]];
    }
    const float magnitude = layer->scale[e] * function_of(layer, e, z + layer->intercept[e]) + layer->offset[e];
    const float weight = gate * magnitude * layer->output_scale[e];
    const uint8_t *row = layer->output + (uint64_t)e * half;
    for (uint32_t j = 0; j < half; j++) {
        y[j] += weight * (float)(((row[j] & 15) ^ 8) - 8);
        y[half + j] += weight * (float)(((row[j] >> 4) ^ 8) - 8);
    }
}

static void add_experts(const Model *model, State *state, uint32_t l, uint32_t t) {
    const Sizes *s = &model->s;
    const Layer *layer = &model->layer[l];
    memset(state->y, 0, s->d_model * sizeof(float));
    for (uint32_t p = 0; p < state->pairs; p++)
        for (int32_t e = layer->cell_start[state->cell[p]]; e < layer->cell_start[state->cell[p] + 1]; e++)
            if (layer->tier[e] <= T1) fire(s, layer, (uint32_t)e, state->gate[p], state->h, state->y);
    for (uint32_t i = 0; layer->num_logical && i < layer->literals; i++) {
        const uint32_t back = layer->literal_offset[i];
        state->wire[i] = back <= t && layer->member[(uint64_t)i * s->vocabulary + state->token[t - back]];
    }
    uint8_t *output = state->wire + layer->literals;
    for (uint32_t g = 0; layer->num_logical && g < layer->gates; g++) {
        const int a = state->wire[layer->wire_a[g]], b = state->wire[layer->wire_b[g]];
        output[g] = layer->gate[g] >> (3 - (2 * a + b)) & 1;
    }
    for (uint32_t i = 0; i < layer->num_logical; i++) {
        const uint32_t e = layer->logical[i];
        if (output[layer->rule[e]]) fire(s, layer, e, 1, state->h, state->y);
    }
    if (s->axis_bias) {
        const uint64_t D = s->d_model;
        for (uint32_t r = 0; r < s->rows; r++)
            if (state->row_gate[r] > 0) add(state->y, state->row_gate[r], layer->row_bias + r * D, s->d_model);
        for (uint32_t c = 0; c < s->columns; c++)
            if (state->column_gate[c] > 0)
                add(state->y, state->column_gate[c], layer->column_bias + c * D, s->d_model);
    }
    add(state->x, 1, state->y, s->d_model);
}

/* The token's place in the sequence is after those that came before; its logits are wanted only for some. */
static void advance(const Model *model, State *state, uint16_t token, int wants_logits) {
    const Sizes *s = &model->s;
    const uint32_t t = state->length++;
    state->token[t] = token;
    memcpy(state->x, model->embedding + (uint64_t)token * s->d_model, s->d_model * sizeof(float));
    for (uint32_t l = 0; l < s->layers; l++) {
        const Layer *layer = &model->layer[l];
        rms_norm(state->x, layer->attention_norm, model->n.norm_eps, s->d_model, state->h);
        attend(model, state, l, t);
        rms_norm(state->x, layer->expert_norm, model->n.norm_eps, s->d_model, state->h);
        if (layer->router.there) route(model, &layer->router, state);
        add_experts(model, state, l, t);
    }
    if (!wants_logits) return;
    rms_norm(state->x, model->norm, model->n.norm_eps, s->d_model, state->h);
    product(model->head, state->h, s->vocabulary, s->d_model, state->logits);
}

/* ---- the two commands ---- */

/* The logits of the token after the first `length`. It sees the last `context` of them, as many as the model was
 * trained on. When they move, every position is another, and the state begins anew. */
static void read_up_to(const Model *model, State *state, const uint16_t *token, uint64_t length) {
    const uint64_t start = length > model->s.context ? length - model->s.context : 0;
    if (start) state->length = 0;
    for (uint64_t done = start + state->length; done < length; done++)
        advance(model, state, token[done], done + 1 == length);
}

static void say_if_longer(const Model *model, const char *what, uint64_t length) {
    if (length > model->s.context)
        fprintf(stderr, "%s %llu tokens, and the model was trained on %u of context: each sees the %u before it and no "
                "older ones\n", what, (unsigned long long)length, model->s.context, model->s.context);
}

static uint64_t number(const char *text, const char *what, uint64_t least, uint64_t most) {
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-' || value < least || value > most)
        die("%s: got %s, wanted a number from %llu to %llu", what, text, (unsigned long long)least,
            (unsigned long long)most);
    return value;
}

static double loss_of(const float *logits, uint32_t count, uint16_t target) {
    double most = -INFINITY, total = 0;
    for (uint32_t i = 0; i < count; i++)
        if (logits[i] > most) most = logits[i];
    for (uint32_t i = 0; i < count; i++) total += exp(logits[i] - most);
    return log(total) + most - logits[target];
}

static void losses(const Model *model, const char *path, uint32_t length) {
    File file = read_file(path);
    const uint64_t window = 2 * ((uint64_t)length + 1), windows = file.size / window;
    if (!windows || file.size % window)
        die("%s has %llu bytes, which is no whole number of windows of %u + 1 tokens of 2 bytes; give it the length "
            "that it was written with", path, (unsigned long long)file.size, length);
    uint16_t *token = (uint16_t *)(void *)file.bytes;
    for (uint64_t i = 0; i < file.size / 2; i++)
        if (token[i] >= model->s.vocabulary)
            die("%s holds token %u at %llu; the model knows 0 to %u", path, token[i], (unsigned long long)i,
                model->s.vocabulary - 1);
    say_if_longer(model, "the windows are of", length);
    State state = new_state(model, length < model->s.context ? length : model->s.context);
    double total = 0;
    for (uint64_t w = 0; w < windows; w++, token += length + 1) {
        state.length = 0;
        for (uint32_t t = 0; t < length; t++) {
            read_up_to(model, &state, token, t + 1);
            total += loss_of(state.logits, model->s.vocabulary, token[t + 1]);
        }
    }
    printf("%.6f nats a token, mean over %llu windows of %u\n", total / (double)(windows * length),
           (unsigned long long)windows, length);
}

static double uniform(uint64_t *seed) { /* splitmix64 */
    uint64_t z = *seed += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

static uint16_t pick(const float *logits, uint32_t count, double temperature, uint32_t top, uint64_t *seed) {
    if (top > count) top = count;
    float *best = need(top, sizeof *best);
    int64_t *which = need(top, sizeof *which);
    uint32_t kept = 0, chosen = 0;
    for (uint32_t i = 0; i < count; i++) keep_best(best, which, temperature > 0 ? top : 1, &kept, logits[i], i);
    if (temperature > 0) {
        double total = 0;
        for (uint32_t i = 0; i < kept; i++) total += exp((best[i] - best[0]) / temperature);
        double left = uniform(seed) * total;
        while (chosen + 1 < kept && (left -= exp((best[chosen] - best[0]) / temperature)) >= 0) chosen++;
    }
    const uint16_t found = (uint16_t)which[chosen];
    free(best);
    free(which);
    return found;
}

static void sample(const Model *model, int count, char **given) {
    uint64_t tokens = 32, top = 50, seed = 0, length = 0, room = 64;
    double temperature = 0;
    uint16_t *id = need(room, sizeof *id);
    int first = 0;
    for (; first + 1 < count && given[first][0] == '-'; first += 2) {
        const char *option = given[first], *value = given[first + 1];
        char *end;
        if (!strcmp(option, "--tokens")) tokens = number(value, option, 1, 1 << 20);
        else if (!strcmp(option, "--top-k")) top = number(value, option, 1, 1 << 16);
        else if (!strcmp(option, "--seed")) seed = number(value, option, 0, UINT64_MAX);
        else if (!strcmp(option, "--temperature")) {
            temperature = strtod(value, &end);
            if (end == value || *end || !(temperature >= 0) || !isfinite(temperature))
                die("--temperature: got %s, wanted 0 (always the likeliest) or more", value);
        } else die("%s is no option; there are --tokens, --temperature, --top-k and --seed", option);
    }
    char word[32];
    for (int i = first; first < count ? i < count : scanf("%31s", word) == 1; i++) {
        if (length == room && !(id = realloc(id, (room *= 2) * sizeof *id))) die("no memory for the prompt");
        id[length++] = (uint16_t)number(first < count ? given[i] : word, "a token id", 0, model->s.vocabulary - 1);
    }
    if (!length) die("got no token ids, wanted one at least: give them as arguments or on standard input");
    const uint64_t all = length + tokens;
    if (!(id = realloc(id, all * sizeof *id))) die("no memory for %llu tokens", (unsigned long long)all);
    say_if_longer(model, "prompt and sample are", all - 1); /* the last token is read by none */
    State state = new_state(model, model->s.context);
    for (; length < all; length++) {
        read_up_to(model, &state, id, length);
        id[length] = pick(state.logits, model->s.vocabulary, temperature, (uint32_t)top, &seed);
        printf("%u%c", id[length], length + 1 < all ? ' ' : '\n');
        fflush(stdout);
    }
}

int main(int count, char **given) {
    const char *tables = "tables.bin";
    if (count > 2 && !strcmp(given[1], "--tables")) tables = given[2], count -= 2, given += 2;
    const int wants_losses = count > 2 && count < 5 && !strcmp(given[1], "losses");
    if (!wants_losses && !(count > 1 && !strcmp(given[1], "sample")))
        die("usage: model [--tables FILE] losses TOKENS [LENGTH] | model [--tables FILE] sample [--tokens N] "
            "[--temperature T] [--top-k K] [--seed S] [ID ...]");
    const Model model = load(tables);
    if (wants_losses)
        losses(&model, given[2], count > 3 ? (uint32_t)number(given[3], "LENGTH", 1, 1 << 16) : model.s.window);
    else
        sample(&model, count - 2, given + 2);
    return 0;
}
