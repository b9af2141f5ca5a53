"""The benchmark of the data path: `dbtunnel forward` beside `ssh -N -L`, measured in one run (`make bench`)."""
