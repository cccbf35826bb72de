"""Models from elsewhere and to elsewhere: checkpoints of other programs in, model folders and ONNX files out."""
