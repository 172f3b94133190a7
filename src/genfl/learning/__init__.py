"""What is learned and how: tasks, local training, pre-training, evaluation."""
