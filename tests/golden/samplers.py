"""Reference trajectories for sampler-flow: diffusers' schedulers and the published formulas of the SDE kernels, in float64.

Run from anywhere with torch 2.11 and diffusers; writes samplers.json beside itself. The velocities are given numbers, not a
network's, so that every step is compared on its own history.
"""

import json
import math
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

HERE = Path(__file__).resolve().parent
DIMS = 4

FEW = [1.0, 0.9, 0.75, 0.5, 0.0]
MANY = [1.0, 0.97, 0.93, 0.88, 0.8, 0.65, 0.45, 0.2, 0.0]
LATE = [0.999, 0.7, 0.3, 0.0]


def euler(x, velocities, sigmas, step, noise, config):
    """diffusers' FlowMatchEulerDiscreteScheduler.step; its sigmas and results are float32."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas[:-1])
    result = scheduler.step(velocities[step], scheduler.timesteps[step], x, return_dict=False)[0]
    return result.double(), None, None


def dpm2m(states, velocities, sigmas, step):
    """The update functions of diffusers' DPMSolverMultistepScheduler, called directly because `step` rounds to float32."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, algorithm_type="dpmsolver++",
        solver_type="midpoint", lower_order_final=True, final_sigmas_type="zero",
    )
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)

    def x0_prediction(k):
        scheduler._step_index = k
        return scheduler.convert_model_output(velocities[k], sample=states[k])

    # The rule of `step`: first order at first, for want of history, and at last, because the final sigma is 0.
    if step == 0 or step == len(sigmas) - 2:
        prediction = x0_prediction(step)
        return scheduler.dpm_solver_first_order_update(prediction, sample=states[step])
    predictions = [x0_prediction(step - 1), x0_prediction(step)]
    return scheduler.multistep_dpm_solver_second_order_update(predictions, sample=states[step])


def gaussian_log_prob(x, mean, std):
    terms = -((x - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))
    return terms.mean().item()


def flow_sde(x, velocities, sigmas, step, noise, config):
    """Flow-GRPO, sd3_sde_with_logprob.py, sde_type "sde"."""
    v, s, dt = velocities[step], sigmas[step], sigmas[step + 1] - sigmas[step]
    rate = math.sqrt(s / (1 - (sigmas[1] if s == 1 else s))) * config["a"]
    mean = x * (1 + rate**2 / (2 * s) * dt) + v * (1 + rate**2 * (1 - s) / (2 * s)) * dt
    std = rate * math.sqrt(-dt)
    result = mean + std * noise
    return result, mean, gaussian_log_prob(result, mean, std)


def dance_sde(x, velocities, sigmas, step, noise, config):
    """Flow-Factory, flow_match_euler_discrete.py, "Dance-SDE"."""
    v, s, dt = velocities[step], sigmas[step], sigmas[step + 1] - sigmas[step]
    x0 = x - s * v
    correction = 0.5 * config["a"] ** 2 * (x - (1 - s) * x0) / s**2
    mean = x + (v + correction) * dt
    std = config["a"] * math.sqrt(-dt)
    result = mean + std * noise
    return result, mean, gaussian_log_prob(result, mean, std)


def cps(x, velocities, sigmas, step, noise, config):
    """Flow-GRPO, sd3_sde_with_logprob.py, sde_type "cps"."""
    v, s, after = velocities[step], sigmas[step], sigmas[step + 1]
    std = after * math.sin(config["eta"] * math.pi / 2)
    x0, predicted_noise = x - s * v, x + (1 - s) * v
    mean = x0 * (1 - after) + predicted_noise * math.sqrt(after**2 - std**2)
    result = mean + std * noise
    return result, mean, -((result - mean) ** 2).mean().item()


KERNELS = {"ode-euler": euler, "sde-flow": flow_sde, "sde-dance": dance_sde, "sde-cps": cps}
CONFIGS = [
    {"type": "ode-euler"},
    {"type": "ode-dpm2m"},
    {"type": "sde-flow", "a": 0.3},
    {"type": "sde-flow", "a": 0.7},
    {"type": "sde-dance", "a": 0.3},
    {"type": "sde-cps", "eta": 0.9},
    {"type": "sde-cps", "eta": 0.4},
]


def trajectory(config, sigmas, generator):
    steps = len(sigmas) - 1
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    velocities, noise, states = draw(steps, DIMS), draw(steps, DIMS), [draw(DIMS)]
    log_prob = []
    for step in range(steps):
        # The last step is deterministic in every kernel: noise there would stay in the image.
        kernel = euler if step == steps - 1 and config["type"] != "ode-dpm2m" else KERNELS.get(config["type"])
        if config["type"] == "ode-dpm2m":
            state, value = dpm2m(states, velocities, sigmas, step), None
        else:
            state, _, value = kernel(states[-1], velocities, sigmas, step, noise[step], config)
        states.append(state)
        log_prob.append(value)
    return {
        "config": config,
        "sigmas": sigmas,
        "velocities": velocities.tolist(),
        "noise": noise.tolist(),
        "states": torch.stack(states).tolist(),
        "log_prob": log_prob,
    }


def schedule(steps, shift):
    """diffusers' static shift of a raw list; the scheduler appends the final 0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    return {"steps": steps, "shift": shift, "sigmas": scheduler.sigmas.double().tolist()}


def main():
    generator = torch.Generator().manual_seed(0)
    cases = [trajectory(config, sigmas, generator) for config in CONFIGS for sigmas in (FEW, MANY, LATE)]
    schedules = [schedule(steps, shift) for steps in (1, 2, 4, 25) for shift in (1.0, 3.0)]
    text = json.dumps({"trajectories": cases, "schedules": schedules}, indent=None, separators=(",", ":"))
    (HERE / "samplers.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
