"""A run in TensorBoard, MLflow, Trackio or Weights & Biases: the same values for each, one file for each, nothing sent anywhere."""
