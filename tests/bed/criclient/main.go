// Drives an image service with the client that kubelet has, as kubelet does, and prints what it saw as JSON; or starts and
// removes the pods that standard input tells of, and prints how long each step took.
//
//	criclient ENDPOINT IMAGE [stream]
//	criclient pods ENDPOINT
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
)

type report struct {
	Pulled       string
	Listed       []*runtimeapi.Image
	Filtered     int
	Status       *runtimeapi.Image
	Info         map[string]string
	Mountpoint   string
	UsedBytes    uint64
	Containers   int
	AfterRemoval *runtimeapi.Image
	Left         int
	Refused      string
}

func main() {
	if len(os.Args) < 3 {
		fail("usage", fmt.Errorf("criclient ENDPOINT IMAGE [stream], or criclient pods ENDPOINT"))
	}
	if os.Args[1] == "pods" {
		pods(os.Args[2])
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	streaming := len(os.Args) > 3 && os.Args[3] == "stream"
	service, err := remote.NewRemoteImageService(ctx, os.Args[1], time.Minute, nil, streaming)
	if err != nil {
		fail("connect", err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(drive(ctx, service, os.Args[2])); err != nil {
		fail("print", err)
	}
}

func drive(ctx context.Context, service internalapi.ImageManagerService, name string) report {
	var seen report
	var err error
	// A pod's annotations travel with the image's name.
	spec := &runtimeapi.ImageSpec{Image: name, Annotations: map[string]string{"kubernetes.io/config.source": "api"}}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Uid: "uid", Namespace: "default"},
	}
	if seen.Pulled, err = service.PullImage(ctx, spec, nil, sandbox); err != nil {
		fail("PullImage", err)
	}
	if seen.Listed, err = service.ListImages(ctx, nil); err != nil {
		fail("ListImages", err)
	}
	filtered, err := service.ListImages(ctx, &runtimeapi.ImageFilter{Image: spec})
	if err != nil {
		fail("ListImages with a filter", err)
	}
	seen.Filtered = len(filtered)
	status, err := service.ImageStatus(ctx, spec, true)
	if err != nil {
		fail("ImageStatus", err)
	}
	seen.Status, seen.Info = status.Image, status.Info
	usage, err := service.ImageFsInfo(ctx)
	if err != nil {
		fail("ImageFsInfo", err)
	}
	for _, filesystem := range usage.ImageFilesystems {
		seen.Mountpoint, seen.UsedBytes = filesystem.FsId.Mountpoint, filesystem.UsedBytes.Value
	}
	seen.Containers = len(usage.ContainerFilesystems)
	// The garbage collector removes by id, and may do so twice.
	for range 2 {
		if err = service.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: seen.Pulled}); err != nil {
			fail("RemoveImage", err)
		}
	}
	status, err = service.ImageStatus(ctx, spec, false)
	if err != nil {
		fail("ImageStatus of what is gone", err)
	}
	seen.AfterRemoval = status.Image
	left, err := service.ListImages(ctx, nil)
	if err != nil {
		fail("ListImages after the removal", err)
	}
	seen.Left = len(left)
	if _, err = service.PullImage(ctx, &runtimeapi.ImageSpec{Image: name + "-absent"}, nil, sandbox); err != nil {
		seen.Refused = err.Error()
	}
	return seen
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "criclient: %s: %v\n", what, err)
	os.Exit(1)
}
