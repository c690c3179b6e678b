"""More compute at test time: several answers, searched ones, longer ones; one file each."""
