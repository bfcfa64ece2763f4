"""Writes a backbone in the format of another library, and checks what it wrote.

Command:   python -m dinov2_jax.main --config=configs/export.py
           --config.checkpoint=runs/quickstart --config.format=huggingface --workdir=exports
Hardware:  any; a CPU is enough
Time:      seconds for ViT-S, a minute for ViT-g (not measured)
Expected:  exports/<format>/ with the files and report.json, whose greatest difference is below 1e-5
Formats:   reference (safetensors named as the released .pth), pth (needs torch), huggingface (for
           AutoModel.from_pretrained), timm, bundle (ours), stablehlo (needs only JAX to run), onnx
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "export"
    config.checkpoint = ""  # all that dinov2_jax.load opens: a run, a file, a released name
    config.which = "teacher"  # teacher | student, of a training checkpoint
    config.format = ""  # reference | pth | huggingface | timm | bundle | stablehlo | onnx
    config.heads = 0  # attention heads, where the width does not tell; 0: it does
    config.allow = (
        ""  # with commas between: tensors that may be left over, mask_token, float16, bfloat16
    )

    # stablehlo and onnx only.
    config.image_sizes = ("224x224",)  # px, height x width; a program each
    config.batch_sizes = (0,)  # images; a program each. 0: one for any number (not onnx)
    config.bake_positions = True  # the resampled position table inside, or resampled in each call
    return config
