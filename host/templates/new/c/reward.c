/* The reward `{{name}}` for AdvDMD, in plain C: `make` builds it. advdmd.h explains the interface. */
#include "advdmd.h"

/* What the user may set, as JSON Schema: `advdmd plugins inspect reward {{name}}` and editors show the descriptions. */
static advdmd_status manifest(const advdmd_sink *out) {
    return advdmd_text(out,
        "{\"components\": [{\"kind\": \"reward\", \"name\": \"{{name}}\", \"schema\": {"
        "  \"type\": \"object\", \"additionalProperties\": false,"
        "  \"description\": \"Rewards images of one contrast: the nearer the standard deviation of their brightness is"
        " to a target, the better.\","
        "  \"properties\": {"
        "    \"target\": {\"type\": \"number\", \"default\": 0.25, \"description\":"
        "      \"The contrast that scores highest, from 0 (one grey) to 0.5 (black and white).\"}"
        "  }}}]}");
}

struct reward {
    double target;
};

/* What the host must make: finished images [B, 3, H, W] in 0..1, as plain numbers. */
static advdmd_status needs(void *self, const advdmd_sink *out) {
    (void)self;
    return advdmd_text(out, "{\"scope\": \"final\", \"images\": true, \"latents\": false, \"features\": null,"
                            " \"on_cpu\": true}");
}

/* Brightness of a pixel: the mean of its three channels. */
static double brightness(const advdmd_lent_tensor *images, int64_t b, int64_t y, int64_t x) {
    return (advdmd_at(images, b, 0, y, x) + advdmd_at(images, b, 1, y, x) + advdmd_at(images, b, 2, y, x)) / 3;
}

/* One finite number a sample; higher is better. Its scale does not matter: the host normalises scores. */
static advdmd_status score(void *self, const advdmd_lent_batch *batch, const advdmd_sink *out) {
    const struct reward *reward = (const struct reward *)self;
    const advdmd_lent_tensor *images = batch->images;
    advdmd_status status = advdmd_check(out, batch, images, "images", 3);
    int64_t b, y, x, height, width;
    if (status != ADVDMD_OK) {
        return status;
    }
    height = images->shape.data[2], width = images->shape.data[3];
    for (b = 0; b < images->shape.data[0]; b++) {
        double mean = 0, variance = 0, pixels = (double)(height * width);
        for (y = 0; y < height; y++) {
            for (x = 0; x < width; x++) {
                mean += brightness(images, b, y, x) / pixels;
            }
        }
        for (y = 0; y < height; y++) {
            for (x = 0; x < width; x++) {
                double difference = brightness(images, b, y, x) - mean;
                variance += difference * difference / pixels;
            }
        }
        advdmd_number(out, -fabs(sqrt(variance) - reward->target));
    }
    return ADVDMD_OK;
}

static void release(void *self) { free(self); }

static const advdmd_reward_vtable REWARD = ADVDMD_REWARD(release, needs, score);

/* Makes the reward of a table of the user's configuration, which arrives as JSON: the place to refuse keys and values. */
static advdmd_status make(advdmd_str config, advdmd_str init, advdmd_reward_object *made, const advdmd_sink *out) {
    struct reward *reward;
    double target = 0.25;
    advdmd_status status = ADVDMD_OK;
    advdmd_str key, value;
    (void)init;
    while (status == ADVDMD_OK && advdmd_next(&config, &key, &value)) {
        if (advdmd_equal(key, "target")) {
            status = advdmd_to_number(out, key, value, &target);
        } else if (!advdmd_equal(key, "type")) {
            status = advdmd_unknown_key(out, key, "`target`");
        }
    }
    if (status != ADVDMD_OK) {
        return status;
    }
    if (target < 0 || target > 0.5) {
        return advdmd_error(out, ADVDMD_CONFIG, "target: expected 0 to 0.5, found %g", target);
    }
    reward = (struct reward *)malloc(sizeof *reward);
    if (reward == NULL) {
        return advdmd_error(out, ADVDMD_FAILED, "out of memory");
    }
    reward->target = target;
    made->data = reward;
    made->vtable = &REWARD;
    return ADVDMD_OK;
}

ADVDMD_PLUGIN({{crate}}, "{{name}}", "0.1.0", manifest, make, advdmd_no_sampler);
