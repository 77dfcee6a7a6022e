// Streams against containerd's Go implementation, which has them since 1.2 (Debian 12 has 1.1).
//
//	peer server SOCKET
//	peer client SOCKET
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "interop.Stream"

func die(format string, args ...interface{}) {
	fmt.Fprintf(os.Stderr, "go stream peer: "+format+"\n", args...)
	os.Exit(1)
}

func check(ok bool, format string, args ...interface{}) {
	if !ok {
		die(format, args...)
	}
}

var streams = map[string]ttrpc.Stream{
	// Joins the client's messages.
	"Join": {StreamingClient: true, Handler: func(_ context.Context, s ttrpc.StreamServer) (interface{}, error) {
		all := ""
		for {
			var m wrapperspb.StringValue
			if err := s.RecvMsg(&m); err != nil {
				if errors.Is(err, io.EOF) {
					return wrapperspb.String(all), nil
				}
				return nil, err
			}
			all += m.Value
		}
	}},
	// A message for each character of the request.
	"Split": {StreamingServer: true, Handler: func(_ context.Context, s ttrpc.StreamServer) (interface{}, error) {
		var m wrapperspb.StringValue
		if err := s.RecvMsg(&m); err != nil {
			return nil, err
		}
		for _, c := range m.Value {
			if err := s.SendMsg(wrapperspb.String(string(c))); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}},
	// Echoes until the client closes, or says "fail".
	"Chat": {StreamingClient: true, StreamingServer: true, Handler: func(_ context.Context, s ttrpc.StreamServer) (interface{}, error) {
		for {
			var m wrapperspb.StringValue
			if err := s.RecvMsg(&m); err != nil {
				if errors.Is(err, io.EOF) {
					return nil, nil
				}
				return nil, err
			}
			if m.Value == "fail" {
				return nil, status.Error(codes.Aborted, "as you wish")
			}
			if err := s.SendMsg(&m); err != nil {
				return nil, err
			}
		}
	}},
}

func open(c *ttrpc.Client, method string, client, server bool, req interface{}) ttrpc.ClientStream {
	s, err := c.NewStream(context.Background(), &ttrpc.StreamDesc{StreamingClient: client,
		StreamingServer: server}, service, method, req)
	check(err == nil, "%s: %v", method, err)
	return s
}

func client(path string) {
	conn, err := net.Dial("unix", path)
	check(err == nil, "connect: %v", err)
	c := ttrpc.NewClient(conn)
	var m wrapperspb.StringValue

	s := open(c, "Join", true, false, nil)
	for _, part := range []string{"ab", "", "cd", "e"} {
		check(s.SendMsg(wrapperspb.String(part)) == nil, "Join: send")
	}
	check(s.CloseSend() == nil, "Join: close")
	err = s.RecvMsg(&m)
	check(err == nil && m.Value == "abcde", "Join: %q %v", m.Value, err)

	s = open(c, "Split", false, true, wrapperspb.String("wxyz"))
	all := ""
	for {
		err = s.RecvMsg(&m)
		if err != nil {
			break
		}
		all += m.Value
	}
	check(errors.Is(err, io.EOF) && all == "wxyz", "Split: %q %v", all, err)

	s = open(c, "Chat", true, true, nil)
	for i := 0; i < 1000; i++ {
		text := fmt.Sprint(i)
		check(s.SendMsg(wrapperspb.String(text)) == nil, "Chat: send")
		err = s.RecvMsg(&m)
		check(err == nil && m.Value == text, "Chat: %q %v", m.Value, err)
	}
	check(s.CloseSend() == nil, "Chat: close")
	err = s.RecvMsg(&m)
	check(errors.Is(err, io.EOF), "Chat: end: %v", err)

	s = open(c, "Chat", true, true, nil)
	check(s.SendMsg(wrapperspb.String("fail")) == nil, "Chat: send")
	err = s.RecvMsg(&m)
	check(status.Code(err) == codes.Aborted, "Chat: failure: %v", err)
	fmt.Println("ok")
}

func main() {
	check(len(os.Args) == 3, "usage: peer server|client SOCKET")
	if os.Args[1] == "client" {
		client(os.Args[2])
		return
	}
	l, err := net.Listen("unix", os.Args[2])
	check(err == nil, "listen: %v", err)
	s, err := ttrpc.NewServer()
	check(err == nil, "server: %v", err)
	s.RegisterService(service, &ttrpc.ServiceDesc{Streams: streams})
	s.Serve(context.Background(), l)
}
