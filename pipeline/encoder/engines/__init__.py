import sys

# Where this package is found, importing OpenVINO or nncf reports that to its makers over the network, unasked.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
