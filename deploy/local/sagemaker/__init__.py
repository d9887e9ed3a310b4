"""SageMaker on this machine: its wire protocol, with jobs that really run as processes."""
