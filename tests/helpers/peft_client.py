"""Run alone: put saved adapters over an export with peft, as anyone would.

Usage: peft_client.py EXPORT CASES.pt RESULTS.pt
"""

from __future__ import annotations

import sys

import alone
import torch


def main() -> None:
    alone.hide_project()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, cases_file, results_file = sys.argv[1:]
    cases, results = torch.load(cases_file), {}
    inputs = {"input_ids": cases["input_ids"], "pixel_values": cases["pixel_values"]}
    for name, adapters in cases["adapters"].items():
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        model = PeftModel.from_pretrained(model, adapters, is_trainable=True).eval()
        logits = model(**inputs).logits
        (logits * cases["weights"]).sum().backward()
        gradients = {
            key.replace(".default", ""): parameter.grad
            for key, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        with torch.no_grad():
            merged = model.merge_and_unload()(**inputs).logits
        results[name] = {"logits": logits.detach(), "merged": merged, "gradients": gradients}
    torch.save(results, results_file)


if __name__ == "__main__":
    main()
