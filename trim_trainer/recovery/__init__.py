"""What makes a drop good again: compensation, distillation, the quality floor."""
