"""Run alone: put saved adapters over an export with peft, and make and save some, as anyone would.

Usage: peft_client.py EXPORT CASES.pt RESULTS.pt
"""

from __future__ import annotations

import sys

import alone
import torch
from torch import nn


def main() -> None:
    alone.hide_project()
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, cases_file, results_file = sys.argv[1:]
    cases, results = torch.load(cases_file), {}

    def opened() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

    for name, adapters in cases["adapters"].items():
        model = PeftModel.from_pretrained(opened(), adapters, is_trainable=True).eval()
        results[name] = run(model, cases)
    for name, case in cases["made"].items():
        torch.manual_seed(0)
        model = get_peft_model(opened(), LoraConfig(**case["settings"])).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_A" not in key:
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(case["folder"])
        results[name] = run(model, cases)
    torch.save(results, results_file)


def run(model, cases: dict) -> dict:
    inputs = {"input_ids": cases["input_ids"], "pixel_values": cases["pixel_values"]}
    logits = model(**inputs).logits
    (logits * cases["weights"]).sum().backward()
    gradients = {
        key.replace(".default", ""): parameter.grad
        for key, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    with torch.no_grad():
        merged = model.merge_and_unload()(**inputs).logits
    return {"logits": logits.detach(), "merged": merged, "gradients": gradients}


if __name__ == "__main__":
    main()
