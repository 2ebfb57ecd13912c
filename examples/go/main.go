// Answers every request with the id of its process, after a pause.
//
// `fcgi.Serve(nil, handler)` alone would serve the listener on fd 0. The rest is for a stop that loses nothing:
// net/http/fcgi has no Shutdown, so SIGTERM closes the listener of this process (the pool's stays open in the
// others) and main waits until the connections in hand are closed.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func answer(w http.ResponseWriter, r *http.Request) {
	pause, err := time.ParseDuration(r.URL.Query().Get("pause"))
	if err != nil {
		pause = 100 * time.Millisecond
	}
	time.Sleep(pause)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Hello from Go\nprocess %s\npid %d\nasked %s %s\n",
		os.Getenv("FCGIMGR_PROCESS"), os.Getpid(), r.Method, r.URL.RequestURI())
}

// counted is a listener that knows which of its connections are open.
type counted struct {
	net.Listener
	open sync.WaitGroup
}

func (l *counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	return &countedConn{Conn: conn, listener: l}, nil
}

type countedConn struct {
	net.Conn
	listener *counted
	once     sync.Once
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.listener.open.Done)
	return err
}

func main() {
	inherited, err := net.FileListener(os.Stdin)
	if err != nil {
		log.Fatalf("fd 0 is not a listening socket: start this program from a FastCGI process manager (%v)", err)
	}
	listener := &counted{Listener: inherited}

	told := make(chan os.Signal, 1)
	stopping := make(chan struct{})
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		close(stopping)
		listener.Close()
	}()

	err = fcgi.Serve(listener, http.HandlerFunc(answer))
	select {
	case <-stopping:
		listener.open.Wait()
	default:
		log.Fatalf("serving ended: %v", err)
	}
}
