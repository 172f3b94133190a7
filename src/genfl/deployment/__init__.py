"""The use of trained models: description, predictions, evaluation and export."""
