"""Knowledge distillation: the loss, the teacher, and cohorts of students trained in lockstep."""
