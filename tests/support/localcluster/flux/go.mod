module dbtunnel.dev/flux

go 1.26.0

// their definitions are read; nothing of them is built
require (
	github.com/fluxcd/kustomize-controller v1.9.0
	github.com/fluxcd/source-controller v1.9.0
)
