"""From groups of nodes to the Program: what each kernel loops over, reads, computes and stores."""
