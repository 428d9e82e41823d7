package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
)

// One line of the input: a pod to start, or the id of one to remove.
type order struct {
	Sandbox   *runtimeapi.PodSandboxConfig
	Container *runtimeapi.ContainerConfig
	// What the container prints last; nothing: its first line is enough.
	Until  string
	Remove string
}

// Seconds since the order came. Lines of the container count from the time that containerd wrote beside them.
type started struct {
	Pod, Container                         string
	Sandbox, Created, Started, First, Last float64
	Lines                                  []string
}

// Starts and removes pods as they are ordered, one after the other and over one connection, as the kubelet has it.
func pods(endpoint string) {
	ctx := context.Background()
	service, err := remote.NewRemoteRuntimeService(ctx, endpoint, 10*time.Minute, nil, false)
	if err != nil {
		fail("connect", err)
	}
	orders := bufio.NewScanner(os.Stdin)
	orders.Buffer(nil, 1<<20)
	answers := json.NewEncoder(os.Stdout)
	for orders.Scan() {
		var wanted order
		if err := json.Unmarshal(orders.Bytes(), &wanted); err != nil {
			fail("read an order", err)
		}
		var answer started
		if wanted.Remove != "" {
			err = remove(ctx, service, wanted.Remove)
		} else {
			answer, err = start(ctx, service, wanted)
		}
		if err != nil {
			fail("order "+orders.Text(), err)
		}
		if err := answers.Encode(answer); err != nil {
			fail("answer", err)
		}
	}
}

func start(ctx context.Context, service internalapi.RuntimeService, wanted order) (seen started, err error) {
	begin := time.Now()
	if seen.Pod, err = service.RunPodSandbox(ctx, wanted.Sandbox, ""); err != nil {
		return seen, err
	}
	seen.Sandbox = time.Since(begin).Seconds()
	if seen.Container, err = service.CreateContainer(ctx, seen.Pod, wanted.Container, wanted.Sandbox); err != nil {
		return seen, err
	}
	seen.Created = time.Since(begin).Seconds()
	if err = service.StartContainer(ctx, seen.Container); err != nil {
		return seen, err
	}
	seen.Started = time.Since(begin).Seconds()
	log := filepath.Join(wanted.Sandbox.LogDirectory, wanted.Container.LogPath)
	// Nobody tells when a log grows.
	for ; time.Since(begin) < 10*time.Minute; time.Sleep(time.Millisecond) {
		text, _ := os.ReadFile(log)
		lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
		seen.Lines = nil
		var times []float64
		for _, line := range lines {
			// Time, stream, whether it is whole, and the line itself.
			words := strings.SplitN(string(line), " ", 4)
			if len(words) < 4 {
				continue
			}
			at, err := time.Parse(time.RFC3339Nano, words[0])
			if err != nil {
				return seen, err
			}
			seen.Lines = append(seen.Lines, words[3])
			times = append(times, at.Sub(begin.Round(0)).Seconds())
		}
		if len(times) == 0 || wanted.Until != "" && seen.Lines[len(times)-1] != wanted.Until {
			continue
		}
		seen.First, seen.Last = times[0], times[len(times)-1]
		return seen, nil
	}
	return seen, fmt.Errorf("the container has not printed %q: %q", wanted.Until, seen.Lines)
}

func remove(ctx context.Context, service internalapi.RuntimeService, pod string) error {
	if err := service.StopPodSandbox(ctx, pod); err != nil {
		return err
	}
	return service.RemovePodSandbox(ctx, pod)
}
