/* AdvDMD's plugin interface for C99 and C++11: rewards and samplers without Rust and without libtorch.
 *
 * A plugin is a dynamic library (`cc -std=c99 -fPIC -shared plugin.c -o libplugin.so`). What the host does with it:
 *
 *   1. It reads the advdmd_header from the ELF section `.advdmd`, without running anything, and compares it with itself.
 *   2. It loads the library, looks up the symbol that the header names, and finds an advdmd_entry there.
 *   3. It calls the functions of the entry's table: `manifest` says which components there are, `reward` and
 *      `sampler` make one of them from its table of the user's configuration, which arrives as JSON.
 *   4. What they make is an object: a pointer of your own and a table of functions that take it as `self`.
 *
 * ADVDMD_PLUGIN at the end of this file writes the header, the table and the entry; ADVDMD_REWARD and ADVDMD_SAMPLER
 * write the table of an object. `advdmd new reward NAME --c` gives a plugin to start from.
 *
 * Rules of the edge:
 *   - Arguments are lent for the call: keep no pointer to a text, a batch or a sink after you return.
 *   - Results go to the advdmd_sink, which copies them. Neither side frees what the other allocated.
 *   - A function returns ADVDMD_OK, or another status with a message in the sink. It never calls exit() or abort(), and
 *     no C++ exception may leave it.
 *   - Functions of one object are called from one thread at a time, though not always from the same thread.
 *
 * The types mirror `sdk/src/abi` of the advdmd-sdk crate; a test compares every size, offset and constant.
 */
#ifndef ADVDMD_H
#define ADVDMD_H

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ the interface */

/* Version of the protocol. It is not the product's version. */
#define ADVDMD_PROTOCOL_MAJOR 1
#define ADVDMD_PROTOCOL_MINOR 0

/* Name of the section that holds the header. */
#define ADVDMD_SECTION ".advdmd"

/* What a function returns. With anything but ADVDMD_OK, the text in the sink is the message. */
typedef int32_t advdmd_status;
#define ADVDMD_OK 0
#define ADVDMD_CONFIG 1      /* a value of the configuration is refused: name the key */
#define ADVDMD_INVALID 2     /* an argument does not fit: a shape, a number type, a missing input */
#define ADVDMD_UNSUPPORTED 3 /* the plugin does not offer that */
#define ADVDMD_PANIC 4       /* for Rust's panics */
#define ADVDMD_FAILED 5      /* the computation itself failed */

/* Element types of tensors. */
#define ADVDMD_F32 0
#define ADVDMD_F64 1
#define ADVDMD_F16 2
#define ADVDMD_BF16 3
#define ADVDMD_I64 4
#define ADVDMD_U8 5
#define ADVDMD_BOOL 6

/* Device of a tensor in main memory; CUDA devices have their index. */
#define ADVDMD_CPU (-1)

/* Levels of the log. */
#define ADVDMD_ERROR 1
#define ADVDMD_WARN 2
#define ADVDMD_INFO 3
#define ADVDMD_DEBUG 4
#define ADVDMD_TRACE 5

/* How the log-probability of a sampler's step is computed, both as means over all but the batch's dimension. */
#define ADVDMD_LOG_PROB_NONE 0          /* a deterministic step */
#define ADVDMD_LOG_PROB_GAUSSIAN 1      /* -(x' - mean)^2 / (2 std^2) - ln std - ln sqrt(2 pi) */
#define ADVDMD_LOG_PROB_SQUARED_ERROR 2 /* -(x' - mean)^2 */

/* What the host reads from the file before it loads the library. Texts are UTF-8 and end with a NUL; numbers are
 * little-endian. Its layout never changes. */
typedef struct advdmd_header {
    char magic[8];
    unsigned char size[4];
    unsigned char protocol_major[2];
    unsigned char protocol_minor[2];
    char sdk[32];      /* empty for a plugin in C */
    char rustc[80];    /* empty for a plugin in C */
    char target[48];   /* ADVDMD_TARGET */
    char libtorch[32]; /* empty: this plugin links none */
    char name[64];
    char version[32];
    char entry[128]; /* name of the symbol of the advdmd_entry */
} advdmd_header;

/* A text: UTF-8, without a NUL at its end. Print it with `%.*s` and ADVDMD_ARG(text). */
typedef struct advdmd_str {
    const char *data;
    size_t length;
} advdmd_str;
#define ADVDMD_ARG(text) (int)(text).length, (text).data

/* Slices: a pointer and a number of elements. */
typedef struct advdmd_strs {
    const advdmd_str *data;
    size_t length;
} advdmd_strs;
typedef struct advdmd_f64s {
    const double *data;
    size_t length;
} advdmd_f64s;
typedef struct advdmd_i64s {
    const int64_t *data;
    size_t length;
} advdmd_i64s;

/* Where a function puts its results. `ctx` is the host's: pass it on. */
typedef struct advdmd_sink {
    void *ctx;
    void (*text)(void *ctx, advdmd_str text);        /* replaces the text */
    void (*numbers)(void *ctx, advdmd_f64s numbers); /* appends numbers */
    void (*tensor)(void *ctx, advdmd_str name, void *handle);
} advdmd_sink;

/* A tensor. For a reward whose needs say `on_cpu`, the numbers begin at `data` and are contiguous float32; advdmd_at()
 * reads any floats with any strides. */
typedef struct advdmd_lent_tensor {
    void *handle; /* libtorch's at::Tensor*, or NULL */
    const unsigned char *data;
    size_t bytes;        /* readable from `data` on */
    advdmd_i64s shape;   /* size of each dimension */
    advdmd_i64s strides; /* elements to step over for the next index of each dimension */
    uint8_t dtype;
    int32_t device;
} advdmd_lent_tensor;

typedef struct advdmd_lent_tensors {
    const advdmd_lent_tensor *data;
    size_t length;
} advdmd_lent_tensors;

/* The samples to score. What the reward's needs did not ask for is NULL or empty. */
typedef struct advdmd_lent_batch {
    advdmd_strs prompts;               /* one a sample: their number B is the batch size */
    const advdmd_lent_tensor *sigma;   /* noise level of each sample, [B] */
    const advdmd_lent_tensor *images;  /* [B, 3, H, W] in 0..1 */
    const advdmd_lent_tensor *latents; /* [B, C, h, w] */
    advdmd_lent_tensors features;      /* [B, C, h, w] each */
} advdmd_lent_batch;

/* The first words of each table: bit i says that function i is there. The host never follows `layout` here. */
typedef struct advdmd_table_head {
    uint64_t fields;
    const void *layout;
} advdmd_table_head;

/* The functions of a reward. Later versions append to the tables; none may be NULL. */
typedef struct advdmd_reward_vtable {
    advdmd_table_head head;
    void (*release)(void *self);
    advdmd_status (*needs)(void *self, const advdmd_sink *out);
    advdmd_status (*score)(void *self, const advdmd_lent_batch *batch, const advdmd_sink *out);
    advdmd_status (*score_differentiable)(void *self, const advdmd_lent_batch *batch, const advdmd_sink *out);
    advdmd_status (*has_learner)(void *self, const advdmd_sink *out);
    advdmd_status (*learner_parameters)(void *self, const advdmd_sink *out);
    advdmd_status (*learner_discriminator_loss)(void *self, const advdmd_lent_batch *real,
                                                const advdmd_lent_batch *fake, const advdmd_sink *out);
    advdmd_status (*learner_generator_loss)(void *self, const advdmd_lent_batch *fake, const advdmd_sink *out);
} advdmd_reward_vtable;

typedef struct advdmd_reward_object {
    void *data; /* yours: it comes back as `self` */
    const advdmd_reward_vtable *vtable;
} advdmd_reward_object;

/* The functions of a sampler. */
typedef struct advdmd_sampler_vtable {
    advdmd_table_head head;
    void (*release)(void *self);
    advdmd_status (*sigmas)(void *self, size_t steps, const advdmd_sink *out);
    advdmd_status (*transition)(void *self, advdmd_f64s sigmas, size_t step, const advdmd_sink *out);
    advdmd_status (*preserves_marginals)(void *self, const advdmd_sink *out);
    advdmd_status (*order)(void *self, const advdmd_sink *out);
} advdmd_sampler_vtable;

typedef struct advdmd_sampler_object {
    void *data;
    const advdmd_sampler_vtable *vtable;
} advdmd_sampler_object;

/* An event for the host's log. Texts that are unknown are empty, with a pointer that is not NULL. */
typedef struct advdmd_log_record {
    uint8_t level;
    uint32_t line;
    advdmd_str name; /* empty for an event */
    advdmd_str target;
    advdmd_str file;
    advdmd_str message;
    advdmd_str fields; /* a JSON object, or empty */
} advdmd_log_record;

typedef struct advdmd_host_log_vtable {
    advdmd_table_head head;
    void (*event)(const void *ctx, const advdmd_log_record *record);
    uint64_t (*span_new)(const void *ctx, const advdmd_log_record *record);
    void (*span_record)(const void *ctx, uint64_t span, advdmd_str fields);
    void (*span_enter)(const void *ctx, uint64_t span);
    void (*span_exit)(const void *ctx, uint64_t span);
    void (*span_close)(const void *ctx, uint64_t span);
} advdmd_host_log_vtable;

/* The host's log; it lives as long as the process. */
typedef struct advdmd_host_log {
    const void *ctx;
    const unsigned char *marker;
    const advdmd_host_log_vtable *vtable;
} advdmd_host_log;

/* The functions of a plugin. An object is written only by a function that returns ADVDMD_OK. */
typedef struct advdmd_plugin_vtable {
    advdmd_table_head head;
    advdmd_status (*manifest)(const advdmd_sink *out);
    advdmd_status (*connect)(advdmd_host_log log, const advdmd_sink *out);
    void (*set_log_level)(uint8_t level);
    advdmd_status (*reward)(advdmd_str config, advdmd_str init, advdmd_reward_object *reward, const advdmd_sink *out);
    advdmd_status (*sampler)(advdmd_str config, advdmd_sampler_object *sampler, const advdmd_sink *out);
    advdmd_status (*backbone)(advdmd_str config, advdmd_str init, void *backbone, const advdmd_sink *out);
} advdmd_plugin_vtable;

/* What the symbol in the header names. */
typedef struct advdmd_entry {
    const advdmd_header *header;
    const void *layout; /* NULL: Rust's description of its types */
    const advdmd_plugin_vtable *vtable;
} advdmd_entry;

/* ---------------------------------------------------------------------------------------------------- results */

/* The text of a function's result, such as JSON. */
static inline advdmd_status advdmd_text(const advdmd_sink *out, const char *text) {
    advdmd_str str;
    str.data = text;
    str.length = strlen(text);
    out->text(out->ctx, str);
    return ADVDMD_OK;
}

/* Appends a number to the result, such as the score of the next sample. */
static inline advdmd_status advdmd_number(const advdmd_sink *out, double number) {
    advdmd_f64s numbers;
    numbers.data = &number;
    numbers.length = 1;
    out->numbers(out->ctx, numbers);
    return ADVDMD_OK;
}

#if defined(__GNUC__)
#define ADVDMD_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define ADVDMD_PRINTF(text, first)
#endif

/* An error, with a message as printf makes it: `return advdmd_error(out, ADVDMD_CONFIG, "scale: ...");` */
ADVDMD_PRINTF(3, 4)
static inline advdmd_status advdmd_error(const advdmd_sink *out, advdmd_status status, const char *format, ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    advdmd_text(out, message);
    return status;
}

/* ------------------------------------------------------------------------------------------------ configuration */

static inline int advdmd_equal(advdmd_str text, const char *other) {
    return text.length == strlen(other) && memcmp(text.data, other, text.length) == 0;
}

/* Reads the object that a configuration is, one key after the other:
 *
 *     advdmd_str key, value;
 *     while (advdmd_next(&config, &key, &value)) ...
 *
 * `key` comes without its quotes, `value` as it stands in the JSON. Escapes are left as they are. */
static inline int advdmd_next(advdmd_str *json, advdmd_str *key, advdmd_str *value) {
    const char *at = json->data, *end = json->data + json->length, *start;
    int depth = 0;
    while (at < end && *at != '"') {
        at++;
    }
    if (at == end) {
        return 0;
    }
    for (start = ++at; at < end && *at != '"'; at++) {
        at += *at == '\\';
    }
    key->data = start;
    key->length = (size_t)(at - start);
    while (at < end && *at != ':') {
        at++;
    }
    at += at < end;
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) {
        at++;
    }
    for (start = at; at < end; at++) {
        if (*at == '"') {
            for (at++; at < end && *at != '"'; at++) {
                at += *at == '\\';
            }
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if (depth == 0 && (*at == ',' || *at == '}')) {
            break;
        } else if (*at == '}' || *at == ']') {
            depth--;
        }
    }
    /* Text that is no JSON may have led beyond its end. */
    at = at < end ? at : end;
    value->data = start < end ? start : end;
    value->length = (size_t)(at - value->data);
    json->data = at;
    json->length = (size_t)(end - at);
    while (value->length > 0 && strchr(" \t\r\n", value->data[value->length - 1]) != NULL) {
        value->length--;
    }
    return 1;
}

/* Reads a JSON number; an error names the key. */
static inline advdmd_status advdmd_to_number(const advdmd_sink *out, advdmd_str key, advdmd_str value, double *number) {
    char text[64], *end;
    if (value.length > 0 && value.length < sizeof text && strchr("-0123456789", value.data[0]) != NULL) {
        memcpy(text, value.data, value.length);
        text[value.length] = '\0';
        *number = strtod(text, &end);
        if (*end == '\0' && isfinite(*number)) {
            return ADVDMD_OK;
        }
    }
    return advdmd_error(out, ADVDMD_CONFIG, "%.*s: expected a number, found %.*s", ADVDMD_ARG(key), ADVDMD_ARG(value));
}

/* The error for a key that the component does not have; `known` lists those that it has. */
static inline advdmd_status advdmd_unknown_key(const advdmd_sink *out, advdmd_str key, const char *known) {
    return advdmd_error(out, ADVDMD_CONFIG, "unknown key `%.*s`, expected %s", ADVDMD_ARG(key), known);
}

/* ----------------------------------------------------------------------------------------------------- tensors */

/* Bytes of an element of a type of floats; 0 for any other type. */
static inline size_t advdmd_float_size(uint8_t dtype) {
    return dtype == ADVDMD_F64 ? 8 : dtype == ADVDMD_F32 ? 4 : dtype == ADVDMD_F16 || dtype == ADVDMD_BF16 ? 2 : 0;
}

/* Checks that a tensor is [B, channels, H, W] with the B of the batch, of floats, and in main memory; 0 channels take any
 * number. `what` names it in messages: `advdmd_check(out, batch, batch->images, "images", 3)`. */
static inline advdmd_status advdmd_check(const advdmd_sink *out, const advdmd_lent_batch *batch,
                                         const advdmd_lent_tensor *tensor, const char *what, int64_t channels) {
    size_t i, last = 0, size;
    if (tensor == NULL) {
        return advdmd_error(out, ADVDMD_INVALID, "the batch holds no %s; ask for them in `needs`", what);
    }
    if (tensor->device != ADVDMD_CPU) {
        return advdmd_error(out, ADVDMD_INVALID, "%s lie on cuda:%d; ask for `on_cpu` in `needs`", what, (int)tensor->device);
    }
    size = advdmd_float_size(tensor->dtype);
    if (size == 0) {
        return advdmd_error(out, ADVDMD_INVALID, "%s: expected floats, found type %d", what, tensor->dtype);
    }
    if (tensor->shape.length != 4 || tensor->strides.length != 4 ||
        (uint64_t)tensor->shape.data[0] != (uint64_t)batch->prompts.length) {
        return advdmd_error(out, ADVDMD_INVALID, "%s: expected shape [%zu, C, H, W], found %zu dimensions, the first of %lld",
                            what, batch->prompts.length, tensor->shape.length,
                            tensor->shape.length > 0 ? (long long)tensor->shape.data[0] : 0LL);
    }
    if (channels != 0 && tensor->shape.data[1] != channels) {
        return advdmd_error(out, ADVDMD_INVALID, "%s: expected %lld channels, found %lld", what, (long long)channels,
                            (long long)tensor->shape.data[1]);
    }
    for (i = 0; i < 4; i++) {
        if (tensor->shape.data[i] < 1) {
            return advdmd_error(out, ADVDMD_INVALID, "%s: dimension %zu is empty", what, i);
        }
        if (tensor->strides.data[i] < 0) {
            return advdmd_error(out, ADVDMD_INVALID, "%s: the stride of dimension %zu is negative", what, i);
        }
        last += (size_t)(tensor->shape.data[i] - 1) * (size_t)tensor->strides.data[i];
    }
    if (tensor->data == NULL || (last + 1) * size > tensor->bytes) {
        return advdmd_error(out, ADVDMD_INVALID, "%s exceed their %zu bytes", what, tensor->bytes);
    }
    return ADVDMD_OK;
}

/* The element [b, c, y, x] of a tensor that advdmd_check() accepted; indices must lie within its shape. */
static inline double advdmd_at(const advdmd_lent_tensor *tensor, int64_t b, int64_t c, int64_t y, int64_t x) {
    const int64_t *stride = tensor->strides.data;
    const unsigned char *at =
        tensor->data + (size_t)(b * stride[0] + c * stride[1] + y * stride[2] + x * stride[3]) *
                           advdmd_float_size(tensor->dtype);
    double f64;
    float f32;
    uint16_t bits16;
    uint32_t bits32;
    switch (tensor->dtype) {
    case ADVDMD_F64:
        memcpy(&f64, at, sizeof f64);
        return f64;
    case ADVDMD_F32:
        memcpy(&f32, at, sizeof f32);
        return f32;
    case ADVDMD_BF16: /* the upper half of a float32 */
        memcpy(&bits16, at, sizeof bits16);
        bits32 = (uint32_t)bits16 << 16;
        memcpy(&f32, &bits32, sizeof f32);
        return f32;
    default: /* IEEE half: its exponent counts from -15, that of float32 from -127 */
        memcpy(&bits16, at, sizeof bits16);
        bits32 = (uint32_t)(bits16 & 0x7fff) << 13;
        if ((bits16 & 0x7c00) == 0x7c00) {
            bits32 |= 0x7f800000u;
        }
        memcpy(&f32, &bits32, sizeof f32);
        f64 = (bits16 & 0x7c00) == 0x7c00 ? (double)f32 : ldexp((double)f32, 127 - 15);
        return bits16 & 0x8000 ? -f64 : f64;
    }
}

/* --------------------------------------------------------------------------------------------------------- log */

/* One for all files of a plugin, and for no other library. */
#define ADVDMD_SHARED __attribute__((weak, visibility("hidden")))
ADVDMD_SHARED advdmd_host_log advdmd_the_log;
ADVDMD_SHARED uint8_t advdmd_the_log_level;

/* Writes to the host's log, under the plugin's name: `advdmd_log(ADVDMD_INFO, "made %d", n);` */
ADVDMD_PRINTF(2, 3)
static inline void advdmd_log(uint8_t level, const char *format, ...) {
    char message[1024];
    advdmd_log_record record;
    va_list arguments;
    if (level > advdmd_the_log_level || advdmd_the_log.vtable == NULL) {
        return;
    }
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    record.level = level;
    record.line = 0;
    record.name.data = record.file.data = record.fields.data = "";
    record.name.length = record.file.length = record.fields.length = 0;
    record.target.data = "plugin";
    record.target.length = strlen(record.target.data);
    record.message.data = message;
    record.message.length = strlen(message);
    advdmd_the_log.vtable->event(advdmd_the_log.ctx, &record);
}

static inline advdmd_status advdmd_connect(advdmd_host_log log, const advdmd_sink *out) {
    (void)out;
    advdmd_the_log = log;
    return ADVDMD_OK;
}

static inline void advdmd_set_log_level(uint8_t level) { advdmd_the_log_level = level; }

/* ------------------------------------------------------------------------------- what a plugin does not offer */

static inline advdmd_status advdmd_no_reward(advdmd_str config, advdmd_str init, advdmd_reward_object *reward,
                                             const advdmd_sink *out) {
    (void)config, (void)init, (void)reward;
    return advdmd_error(out, ADVDMD_UNSUPPORTED, "the plugin has no rewards");
}

static inline advdmd_status advdmd_no_sampler(advdmd_str config, advdmd_sampler_object *sampler, const advdmd_sink *out) {
    (void)config, (void)sampler;
    return advdmd_error(out, ADVDMD_UNSUPPORTED, "the plugin has no samplers");
}

static inline advdmd_status advdmd_no_backbone(advdmd_str config, advdmd_str init, void *backbone,
                                               const advdmd_sink *out) {
    (void)config, (void)init, (void)backbone;
    return advdmd_error(out, ADVDMD_UNSUPPORTED, "the plugin has no backbones");
}

static inline advdmd_status advdmd_not_differentiable(void *self, const advdmd_lent_batch *batch, const advdmd_sink *out) {
    (void)self, (void)batch, (void)out;
    return ADVDMD_OK;
}

static inline advdmd_status advdmd_has_no_learner(void *self, const advdmd_sink *out) {
    (void)self;
    return advdmd_number(out, 0.0);
}

static inline advdmd_status advdmd_no_parameters(void *self, const advdmd_sink *out) {
    (void)self;
    return advdmd_error(out, ADVDMD_UNSUPPORTED, "the reward has no learner");
}

static inline advdmd_status advdmd_no_discriminator_loss(void *self, const advdmd_lent_batch *real,
                                                         const advdmd_lent_batch *fake, const advdmd_sink *out) {
    (void)self, (void)real, (void)fake;
    return advdmd_error(out, ADVDMD_UNSUPPORTED, "the reward has no learner");
}

static inline advdmd_status advdmd_no_generator_loss(void *self, const advdmd_lent_batch *fake, const advdmd_sink *out) {
    (void)self, (void)fake;
    return advdmd_error(out, ADVDMD_UNSUPPORTED, "the reward has no learner");
}

/* ------------------------------------------------------------------------------------------------- declarations */

/* `static const advdmd_reward_vtable TABLE = ADVDMD_REWARD(release, needs, score);` */
#define ADVDMD_REWARD(release, needs, score)                                                                           \
    {                                                                                                                  \
        {(1u << 8) - 1, NULL}, release, needs, score, advdmd_not_differentiable, advdmd_has_no_learner,                \
            advdmd_no_parameters, advdmd_no_discriminator_loss, advdmd_no_generator_loss                               \
    }

/* `static const advdmd_sampler_vtable TABLE = ADVDMD_SAMPLER(release, sigmas, transition, preserves_marginals, order);` */
#define ADVDMD_SAMPLER(release, sigmas, transition, preserves_marginals, order)                                        \
    {                                                                                                                  \
        {(1u << 5) - 1, NULL}, release, sigmas, transition, preserves_marginals, order                                 \
    }

/* The target triple that the host compares with its own. */
#ifndef ADVDMD_TARGET
#if defined(__x86_64__) && defined(__GLIBC__)
#define ADVDMD_TARGET "x86_64-unknown-linux-gnu"
#elif defined(__aarch64__) && defined(__GLIBC__)
#define ADVDMD_TARGET "aarch64-unknown-linux-gnu"
#else
#error "define ADVDMD_TARGET as the target triple of the host, as `advdmd plugins list` shows it for other plugins"
#endif
#endif

/* Makes the library a plugin; once, at the end of one file. `id` is an identifier that names the entry's symbol, `name` and
 * `version` are texts, `manifest` is a function that writes the manifest, `reward` and `sampler` make the components
 * (advdmd_no_reward or advdmd_no_sampler if there are none). */
#define ADVDMD_PLUGIN(id, name, version, manifest, reward, sampler)                                                    \
    __attribute__((section(ADVDMD_SECTION), used)) static const advdmd_header advdmd_header_##id = {                   \
        {'\x89', 'A', 'D', 'V', 'D', 'M', 'D', '\n'},                                                                  \
        {sizeof(advdmd_header) & 0xff, sizeof(advdmd_header) >> 8, 0, 0},                                              \
        {ADVDMD_PROTOCOL_MAJOR, 0},                                                                                    \
        {ADVDMD_PROTOCOL_MINOR, 0},                                                                                    \
        "",                                                                                                            \
        "",                                                                                                            \
        ADVDMD_TARGET,                                                                                                 \
        "",                                                                                                            \
        name,                                                                                                          \
        version,                                                                                                       \
        "advdmd_plugin_" #id};                                                                                         \
    static const advdmd_plugin_vtable advdmd_table_##id = {                                                            \
        {(1u << 6) - 1, NULL}, manifest, advdmd_connect, advdmd_set_log_level, reward, sampler, advdmd_no_backbone};   \
    extern const advdmd_entry advdmd_plugin_##id __attribute__((visibility("default")));                               \
    const advdmd_entry advdmd_plugin_##id = {&advdmd_header_##id, NULL, &advdmd_table_##id}

#ifdef __cplusplus
}
#endif

#endif
