"""Models that read an image and a text and write a text: LLaVA, Qwen-VL, Idefics3, InternVL, PaliGemma, Gemma 3, ..."""
