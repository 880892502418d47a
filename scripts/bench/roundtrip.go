package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"time"
)

// What a link's round trip really is: -serve echo-target answers each 4 KiB with one byte, -serve echo-source asks again and again.

const echoBlock = 4 << 10

// runEchoTarget listens on the IP until its standard input ends.
func runEchoTarget(ctx context.Context, ip string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(l.Addr().String()); err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				p := make([]byte, echoBlock)
				for {
					if _, err := io.ReadFull(c, p); err != nil {
						return
					}
					if _, err := c.Write(p[:1]); err != nil {
						return
					}
				}
			}()
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return l.Close()
}

// runEchoSource prints the median of 200 round trips.
func runEchoSource(ctx context.Context, to string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	p := make([]byte, echoBlock)
	var each []float64
	for range 200 {
		began := time.Now()
		if _, err := c.Write(p); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, p[:1]); err != nil {
			return err
		}
		each = append(each, float64(time.Since(began)))
	}
	return json.NewEncoder(os.Stdout).Encode(time.Duration(middle(each)))
}

// roundTrip measures it between the lab's hosts.
func (l *portLab) roundTrip(ctx context.Context) (took time.Duration, err error) {
	target, err := startChild(ctx, l.b, "-serve", "echo-target", labIP(1, 2))
	if err != nil {
		return 0, err
	}
	defer target.end()
	var at string
	if err := target.read(&at); err != nil {
		return 0, err
	}
	source, err := startChild(ctx, l.a, "-serve", "echo-source", at)
	if err != nil {
		return 0, err
	}
	defer source.end()
	err = source.read(&took)
	return took, err
}
