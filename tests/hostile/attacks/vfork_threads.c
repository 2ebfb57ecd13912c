// A worker whose threads are in vfork(2) for ever: such a one can neither be stopped nor be seen to stand still.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
#include "notify.h"

static void *wait_for_child(void *nothing) {
    if (vfork() == 0)
        for (;;) pause();
    return nothing;
}

int main(void) {
    pthread_t thread;
    for (int at = 0; at < 4; at++) pthread_create(&thread, NULL, wait_for_child, NULL);
    sleep(1);
    notify("X_RECYCLE=please");
    for (;;) pause();
}
