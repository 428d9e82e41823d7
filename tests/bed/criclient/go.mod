module criclient

go 1.26.0

require (
	k8s.io/cri-api v0.36.3
	k8s.io/cri-client v0.36.3
)
