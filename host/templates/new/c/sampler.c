/* The sampler `{{name}}` for AdvDMD, in plain C: `make` builds it. advdmd.h explains the interface.
 *
 * Rectified flow: x_s = (1 - s) x0 + s noise, velocity v = noise - x0. Sigma s runs from 1 (noise) to 0 (data). */
#include "advdmd.h"

/* What the user may set, as JSON Schema: `advdmd plugins inspect sampler {{name}}` and editors show the descriptions. */
static advdmd_status manifest(const advdmd_sink *out) {
    return advdmd_text(out,
        "{\"components\": [{\"kind\": \"sampler\", \"name\": \"{{name}}\", \"schema\": {"
        "  \"type\": \"object\", \"additionalProperties\": false,"
        "  \"description\": \"Euler's method over sigmas that follow a power.\","
        "  \"properties\": {"
        "    \"power\": {\"type\": \"number\", \"default\": 1.5, \"description\":"
        "      \"Step i of n begins at sigma `1 - (i / n)^power`: 1 for even steps, above 1 for shorter steps near the"
        " noise.\"}"
        "  }}}]}");
}

struct sampler {
    double power;
};

static advdmd_status sigmas(void *self, size_t steps, const advdmd_sink *out) {
    const struct sampler *sampler = (const struct sampler *)self;
    size_t step;
    if (steps < 1 || steps > 1000) {
        return advdmd_error(out, ADVDMD_INVALID, "steps: expected 1 to 1000, found %zu", steps);
    }
    for (step = 0; step <= steps; step++) {
        advdmd_number(out, 1 - pow((double)step / (double)steps, sampler->power));
    }
    return ADVDMD_OK;
}

/* A step is the coefficients of x' = a x + sum_i b[i] v_i + c noise: a, c, the convention of its log-probability, then b with
 * the newest velocity first. The host owns the tensors; a sampler is numbers. */
static advdmd_status transition(void *self, advdmd_f64s sigmas, size_t step, const advdmd_sink *out) {
    size_t i;
    (void)self;
    if (sigmas.length < 2 || step > sigmas.length - 2) {
        return advdmd_error(out, ADVDMD_INVALID, "step: found %zu, and there are %zu sigmas", step, sigmas.length);
    }
    for (i = 1; i < sigmas.length; i++) {
        if (!(sigmas.data[i] < sigmas.data[i - 1])) {
            return advdmd_error(out, ADVDMD_INVALID, "sigmas: expected numbers that fall strictly, found %g after %g",
                                sigmas.data[i], sigmas.data[i - 1]);
        }
    }
    advdmd_number(out, 1);
    advdmd_number(out, 0);
    advdmd_number(out, ADVDMD_LOG_PROB_NONE);
    return advdmd_number(out, sigmas.data[step + 1] - sigmas.data[step]);
}

/* Whether x' has the noise level of its sigma when the velocity is exact: 1 or 0. */
static advdmd_status preserves_marginals(void *self, const advdmd_sink *out) {
    (void)self;
    return advdmd_number(out, 1);
}

/* Order of convergence: 1 for Euler's method. */
static advdmd_status order(void *self, const advdmd_sink *out) {
    (void)self;
    return advdmd_number(out, 1);
}

static void release(void *self) { free(self); }

static const advdmd_sampler_vtable SAMPLER = ADVDMD_SAMPLER(release, sigmas, transition, preserves_marginals, order);

/* Makes the sampler of a table of the user's configuration, which arrives as JSON: the place to refuse keys and values. */
static advdmd_status make(advdmd_str config, advdmd_sampler_object *made, const advdmd_sink *out) {
    struct sampler *sampler;
    double power = 1.5;
    advdmd_status status = ADVDMD_OK;
    advdmd_str key, value;
    while (status == ADVDMD_OK && advdmd_next(&config, &key, &value)) {
        if (advdmd_equal(key, "power")) {
            status = advdmd_to_number(out, key, value, &power);
        } else if (!advdmd_equal(key, "type")) {
            status = advdmd_unknown_key(out, key, "`power`");
        }
    }
    if (status != ADVDMD_OK) {
        return status;
    }
    if (power < 0.2 || power > 5) {
        return advdmd_error(out, ADVDMD_CONFIG, "power: expected 0.2 to 5, found %g", power);
    }
    sampler = (struct sampler *)malloc(sizeof *sampler);
    if (sampler == NULL) {
        return advdmd_error(out, ADVDMD_FAILED, "out of memory");
    }
    sampler->power = power;
    made->data = sampler;
    made->vtable = &SAMPLER;
    return ADVDMD_OK;
}

ADVDMD_PLUGIN({{crate}}, "{{name}}", "0.1.0", manifest, advdmd_no_reward, make);
