// The other side of the interop tests and of the benchmark, on containerd's Go implementation.
//
//	peer server SOCKET
//	peer client SOCKET
//	peer bench SOCKET CALLS IN-FLIGHT PAYLOAD-BYTES
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const service = "interop.Test"

func die(format string, args ...interface{}) {
	fmt.Fprintf(os.Stderr, "go peer: "+format+"\n", args...)
	os.Exit(1)
}

func check(ok bool, format string, args ...interface{}) {
	if !ok {
		die(format, args...)
	}
}

func unary(f func(context.Context, *ttrpc.KeyValue) (*ttrpc.KeyValue, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(interface{}) error) (interface{}, error) {
		var req ttrpc.KeyValue
		if err := unmarshal(&req); err != nil {
			return nil, err
		}
		resp, err := f(ctx, &req)
		if err != nil {
			return nil, err
		}
		return resp, nil
	}
}

var methods = map[string]ttrpc.Method{
	"Echo": unary(func(_ context.Context, r *ttrpc.KeyValue) (*ttrpc.KeyValue, error) {
		return r, nil
	}),
	"Fail": unary(func(_ context.Context, r *ttrpc.KeyValue) (*ttrpc.KeyValue, error) {
		code, _ := strconv.Atoi(r.Key)
		return nil, status.Error(codes.Code(code), r.Value)
	}),
	"Sleep": unary(func(ctx context.Context, r *ttrpc.KeyValue) (*ttrpc.KeyValue, error) {
		ms, _ := strconv.Atoi(r.Key)
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
			return r, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}),
	"Metadata": unary(func(ctx context.Context, r *ttrpc.KeyValue) (*ttrpc.KeyValue, error) {
		v, _ := ttrpc.GetMetadataValue(ctx, r.Key)
		return &ttrpc.KeyValue{Key: r.Key, Value: v}, nil
	}),
	"Big": unary(func(_ context.Context, r *ttrpc.KeyValue) (*ttrpc.KeyValue, error) {
		n, _ := strconv.Atoi(r.Key)
		return &ttrpc.KeyValue{Value: strings.Repeat("b", n)}, nil
	}),
}

func serve(path string) {
	l, err := net.Listen("unix", path)
	check(err == nil, "listen: %v", err)
	s, err := ttrpc.NewServer()
	check(err == nil, "server: %v", err)
	s.Register(service, methods)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		os.Exit(0)
	}()
	s.Serve(context.Background(), l)
}

func dial(path string) *ttrpc.Client {
	conn, err := net.Dial("unix", path)
	check(err == nil, "connect: %v", err)
	return ttrpc.NewClient(conn)
}

func call(ctx context.Context, c *ttrpc.Client, method, key, value string) (*ttrpc.KeyValue, error) {
	var resp ttrpc.KeyValue
	err := c.Call(ctx, service, method, &ttrpc.KeyValue{Key: key, Value: value}, &resp)
	return &resp, err
}

func client(path string) {
	ctx := context.Background()
	c := dial(path)

	r, err := call(ctx, c, "Echo", "k", "v")
	check(err == nil && r.Key == "k" && r.Value == "v", "Echo: %v %v", r, err)

	for code := 1; code <= 16; code++ {
		_, err = call(ctx, c, "Fail", strconv.Itoa(code), "told so")
		st, ok := status.FromError(err)
		check(ok && int(st.Code()) == code && st.Message() == "told so", "Fail %d: %v", code, err)
	}
	_, err = call(ctx, c, "Nothing", "", "")
	check(status.Code(err) == codes.Unimplemented, "unknown method: %v", err)
	err = c.Call(ctx, "interop.None", "Echo", &ttrpc.KeyValue{}, &ttrpc.KeyValue{})
	check(status.Code(err) == codes.Unimplemented, "unknown service: %v", err)

	md := ttrpc.MD{}
	md.Set("containerd-namespace-ttrpc", "k8s.io")
	r, err = call(ttrpc.WithMetadata(ctx, md), c, "Metadata", "containerd-namespace-ttrpc", "")
	check(err == nil && r.Value == "k8s.io", "Metadata: %v %v", r, err)

	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	start := time.Now()
	_, err = call(short, c, "Sleep", "60000", "")
	cancel()
	check(err != nil && time.Since(start) < 5*time.Second, "deadline: %v after %v", err, time.Since(start))

	r, err = call(ctx, c, "Big", "4000000", "")
	check(err == nil && len(r.Value) == 4000000, "Big: %d %v", len(r.Value), err)
	_, err = call(ctx, c, "Big", "5000000", "")
	check(status.Code(err) == codes.ResourceExhausted, "answer over the limit: %v", err)
	_, err = call(ctx, c, "Echo", "", strings.Repeat("x", 5000000))
	check(status.Code(err) == codes.ResourceExhausted, "request over the limit: %v", err)
	r, err = call(ctx, c, "Echo", "alive", "")
	check(err == nil && r.Key == "alive", "after an oversize request: %v %v", r, err)

	// Many in flight, answered in another order than asked.
	var wg sync.WaitGroup
	start = time.Now()
	for i := 0; i < 200; i++ {
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			ms := strconv.Itoa(200 - i)
			r, err := call(ctx, c, "Sleep", ms, "")
			check(err == nil && r.Key == ms, "Sleep %s: %v %v", ms, r, err)
		}(i)
	}
	wg.Wait()
	check(time.Since(start) < 10*time.Second, "calls wait for each other: %v", time.Since(start))
	c.Close()
	fmt.Println("ok")
}

func bench(path string, calls, inFlight, size int) {
	c := dial(path)
	ctx := context.Background()
	req := &ttrpc.KeyValue{Value: strings.Repeat("p", size)}
	lat := make([][]time.Duration, inFlight)
	var wg sync.WaitGroup
	start := time.Now()
	for w := 0; w < inFlight; w++ {
		wg.Add(1)
		go func(w int) {
			defer wg.Done()
			n := calls / inFlight
			lat[w] = make([]time.Duration, 0, n)
			for i := 0; i < n; i++ {
				var resp ttrpc.KeyValue
				t := time.Now()
				err := c.Call(ctx, service, "Echo", req, &resp)
				check(err == nil && len(resp.Value) == size, "Echo: %v", err)
				lat[w] = append(lat[w], time.Since(t))
			}
		}(w)
	}
	wg.Wait()
	wall := time.Since(start)
	var all []time.Duration
	for _, l := range lat {
		all = append(all, l...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	fmt.Printf("%d %.6f %.1f %.1f\n", len(all), wall.Seconds(),
		float64(all[len(all)/2].Nanoseconds())/1e3, float64(all[len(all)*99/100].Nanoseconds())/1e3)
}

func main() {
	num := func(i int) int {
		n, err := strconv.Atoi(os.Args[i])
		check(err == nil, "not a number: %s", os.Args[i])
		return n
	}
	switch {
	case len(os.Args) == 3 && os.Args[1] == "server":
		serve(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "client":
		client(os.Args[2])
	case len(os.Args) == 6 && os.Args[1] == "bench":
		bench(os.Args[2], num(3), num(4), num(5))
	default:
		die("usage: peer server|client|bench SOCKET ...")
	}
}
