/* The reward `symmetry` for AdvDMD, in plain C: `make` builds it. advdmd.h explains the interface. */
#include "advdmd.h"

/* No keys: the schema allows none, and make() refuses them as well. */
static advdmd_status manifest(const advdmd_sink *out) {
    return advdmd_text(out,
        "{\"components\": [{\"kind\": \"reward\", \"name\": \"symmetry\", \"schema\": {"
        "  \"type\": \"object\", \"additionalProperties\": false, \"properties\": {},"
        "  \"description\": \"Rewards images that are their own mirror image, left to right: 0 is the highest score, -1 the"
        " lowest.\"}}]}");
}

static advdmd_status needs(void *self, const advdmd_sink *out) {
    (void)self;
    return advdmd_text(out, "{\"scope\": \"final\", \"images\": true, \"latents\": false, \"features\": null,"
                            " \"on_cpu\": true}");
}

/* The mean difference of a pixel and its mirror image, below 0. */
static advdmd_status score(void *self, const advdmd_lent_batch *batch, const advdmd_sink *out) {
    const advdmd_lent_tensor *images = batch->images;
    advdmd_status status = advdmd_check(out, batch, images, "images", 3);
    int64_t b, c, y, x, height, width;
    (void)self;
    if (status != ADVDMD_OK) {
        return status;
    }
    height = images->shape.data[2], width = images->shape.data[3];
    for (b = 0; b < images->shape.data[0]; b++) {
        double sum = 0;
        for (c = 0; c < 3; c++) {
            for (y = 0; y < height; y++) {
                for (x = 0; x < width; x++) {
                    sum += fabs(advdmd_at(images, b, c, y, x) - advdmd_at(images, b, c, y, width - 1 - x));
                }
            }
        }
        advdmd_number(out, -sum / (double)(3 * height * width));
    }
    return ADVDMD_OK;
}

/* The reward keeps nothing, so there is nothing to free. */
static void release(void *self) { (void)self; }

static const advdmd_reward_vtable REWARD = ADVDMD_REWARD(release, needs, score);

static advdmd_status make(advdmd_str config, advdmd_str init, advdmd_reward_object *made, const advdmd_sink *out) {
    advdmd_str key, value;
    (void)init;
    while (advdmd_next(&config, &key, &value)) {
        if (!advdmd_equal(key, "type")) {
            return advdmd_unknown_key(out, key, "no keys");
        }
    }
    made->data = NULL;
    made->vtable = &REWARD;
    return ADVDMD_OK;
}

ADVDMD_PLUGIN(reward_symmetry, "reward-symmetry", "0.1.0", manifest, make, advdmd_no_sampler);
