// A worker in the midst of an execve(2) that does not end. A process below it traces its second thread and never waits
// for it, so that the kernel waits for that thread's end, and holds meanwhile what whoever traces the worker has to have.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "notify.h"

static volatile pid_t second;

static void *sleep_on(void *nothing) {
    second = syscall(SYS_gettid);
    for (;;) pause();
    return nothing;
}

int main(void) {
    int ready[2], go[2];
    char byte;
    pthread_t thread;
    if (pipe(ready) || pipe(go)) return 1;
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    pthread_create(&thread, NULL, sleep_on, NULL);
    while (!second) usleep(1000);
    if (fork() == 0) {
        signal(SIGTERM, SIG_IGN);
        if (ptrace(PTRACE_SEIZE, second, 0, 0)) perror("PTRACE_SEIZE");
        if (write(ready[1], "r", 1) != 1) return 1;
        sleep(1);
        if (write(go[1], "g", 1) != 1) return 1;
        usleep(200000);
        notify("X_RECYCLE=please");
        for (;;) pause();
    }
    if (read(ready[0], &byte, 1) != 1 || read(go[0], &byte, 1) != 1) return 1;
    execl("/bin/sleep", "sleep", "1000", NULL);
    return 1;
}
