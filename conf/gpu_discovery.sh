#!/bin/sh
# For spark.{worker,executor}.resource.gpu.discoveryScript: the GPUs of this host, as Spark wants them.
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)
echo "{\"name\": \"gpu\", \"addresses\": [$addresses]}"
