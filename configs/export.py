"""Write a backbone in the format of another library, and check the result.

Command:   python -m dinov2_jax.main --config=configs/export.py
           --config.checkpoint=runs/quickstart --config.format=huggingface --workdir=exports
Hardware:  any; a CPU is enough
Time:      seconds for ViT-S, a minute for ViT-g (not measured)
Expected:  exports/<format>/ with the files and report.json, whose greatest difference is below 1e-5
           of the greatest feature
Formats:   reference (safetensors named as the released .pth), pth (needs torch), huggingface (for
           AutoModel.from_pretrained), timm, bundle (ours), stablehlo (needs only JAX to run), onnx
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "export"  # what `python -m dinov2_jax.main` does with this configuration
    config.checkpoint = ""  # whatever dinov2_jax.load opens: a run, a file, a released name
    config.which = "teacher"  # teacher | student, of a training checkpoint
    config.format = ""  # reference | pth | huggingface | timm | bundle | stablehlo | onnx
    # Attention heads, if neither the file nor the width tells them; 0: they do
    config.heads = 0
    # For `load`, with commas between: tensors or modules that may be left over, mask_token,
    # float16, bfloat16, fields of config.json or preprocessor_config.json that are not followed
    config.allow = ""
    # How positions are resampled for other sizes; -1 and "": as the weights say, or as the original
    # does. Weights that were fine-tuned under transformers: 0.0
    config.interpolate_offset = -1.0
    config.interpolate_antialias = ""  # true | false

    # The following are for stablehlo and onnx only.
    config.image_sizes = ("224x224",)  # px, height x width; one program for each
    config.batch_sizes = (0,)  # images; one program for each. 0: any number (not onnx)
    config.bake_positions = True  # True: store resampled positions; False: resample in each call
    return config
