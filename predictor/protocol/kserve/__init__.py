"""KServe's APIs: V1, V2 over REST and gRPC, and the generate extension."""
