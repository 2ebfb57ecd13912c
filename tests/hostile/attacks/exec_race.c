// A worker of many threads, some of which watch whether the others are traced: as soon as one is, they execute another
// program, while the tracer is still at the rest of them.
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "notify.h"

enum { SLEEPERS = 300, WATCHERS = 4 };

static pid_t threads[SLEEPERS];
static volatile int there, go;

static void *sleep_on(void *at) {
    threads[(long)at] = syscall(SYS_gettid);
    __sync_add_and_fetch(&there, 1);
    for (;;) pause();
    return NULL;
}

static int is_traced(pid_t thread) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", thread);
    int file = open(path, O_RDONLY);
    if (file < 0) return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) return 0;
    text[length] = 0;
    char *tracer = strstr(text, "TracerPid:");
    return tracer && atoi(tracer + 10) > 0;
}

static void *watch(void *first) {
    while (!go) usleep(1000);
    for (;;)
        for (long at = (long)first; at < SLEEPERS; at += WATCHERS)
            if (is_traced(threads[at])) execl("/bin/sleep", "sleep", "1000", NULL);
    return NULL;
}

int main(void) {
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (long at = 0; at < SLEEPERS; at++) pthread_create(&thread, &small, sleep_on, (void *)at);
    for (long at = 0; at < WATCHERS; at++) pthread_create(&thread, &small, watch, (void *)at);
    while (there < SLEEPERS) usleep(1000);
    sleep(1);
    go = 1;
    notify("X_RECYCLE=please");
    for (;;) pause();
}
