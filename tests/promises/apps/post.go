// Serves the listener on fd 0: FastCGI with the argument "fcgi", else HTTP, where "shutdown" has it end well on SIGTERM.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

var posted *os.File

func answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var name string
	var before, between int
	fmt.Sscan(string(body), &name, &before, &between)
	middle := len(name) / 2
	posted.WriteString("begun " + name + "\n")
	time.Sleep(time.Duration(before) * time.Millisecond)
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, name[:middle])
	w.(http.Flusher).Flush()
	time.Sleep(time.Duration(between) * time.Millisecond)
	posted.WriteString("done " + name + "\n")
	io.WriteString(w, name[middle:]+"\n")
}

func main() {
	var err error
	posted, err = os.OpenFile(os.Getenv("POSTED_LOG"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	how := strings.Join(os.Args[1:], " ")
	if how == "fcgi" {
		log.Fatal(fcgi.Serve(nil, http.HandlerFunc(answer)))
	}
	listener, err := net.FileListener(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(answer)}
	if how != "shutdown" {
		log.Fatal(server.Serve(listener))
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go server.Serve(listener)
	<-told
	server.Shutdown(context.Background())
}
