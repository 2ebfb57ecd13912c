// A worker with a page of memory that nobody can read: it is of a file whose server never answers. Its arguments: that
// file, and where it has others read the page.
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include "notify.h"

static void *page;

static int is_traced(void) {
    char text[1024];
    int file = open("/proc/thread-self/status", O_RDONLY);
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    char *tracer = strstr(text, "TracerPid:");
    return tracer && atoi(tracer + 10) > 0;
}

// A connection that was accepted and is not answered: it is not idle, and so the worker is looked at for long.
static void have_something_in_hand(void) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    getsockname(0, (struct sockaddr *)&address, &length);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    connect(client, (struct sockaddr *)&address, length);
    if (accept(0, NULL, NULL) < 0 || write(client, "hello", 5) != 5) perror("connection");
}

static void *poll_it(void *nothing) {
    poll(page, 1, -1);
    return nothing;
}

// As soon as it is told to, for what is before it has to be there when its reader looks.
static void *print_it(void *nothing) {
    sigset_t told;
    struct timespec patience = {3, 0};
    sigemptyset(&told);
    sigaddset(&told, SIGUSR1);
    sigtimedwait(&told, NULL, &patience);
    puts("before");
    fflush(stdout);
    if (write(1, page, 4096) < 0) perror("page");
    puts("\nafter");
    fflush(stdout);
    return nothing;
}

// While the kernel waits for a page that is read so, it keeps others from the whole memory, as soon as one wants to
// change it: and so from all that /proc shows of it (environ, cmdline, maps).
static void *lock_it(void *nothing) {
    char byte;
    int memory = open("/proc/self/mem", O_RDONLY);
    if (pread(memory, &byte, 1, (off_t)page) != 1) perror("/proc/self/mem");
    return nothing;
}

static int leave_one_whose_memory_is_locked(void) {
    if (fork() == 0) {
        pthread_t thread;
        signal(SIGTERM, SIG_IGN);
        setsid();
        pthread_create(&thread, NULL, lock_it, NULL);
        usleep(100000);
        munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
        _exit(0);
    }
    sleep(1);
    return 3;
}

static void *send_it(void *nothing) {
    while (!is_traced()) usleep(1000);
    writev(1, page, 1);
    return nothing;
}

int main(int count, char **arguments) {
    int file = open(arguments[1], O_RDONLY);
    page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
    if (count < 3 || file < 0 || page == MAP_FAILED) {
        perror(arguments[1]);
        return 1;
    }
    sigset_t told;
    sigemptyset(&told);
    sigaddset(&told, SIGUSR1);
    sigprocmask(SIG_BLOCK, &told, NULL);
    if (strcmp(arguments[2], "lock") == 0) return leave_one_whose_memory_is_locked();
    pthread_t thread;
    void *(*how)(void *) = strcmp(arguments[2], "poll") == 0    ? poll_it
                           : strcmp(arguments[2], "print") == 0 ? print_it
                                                                : send_it;
    pthread_create(&thread, NULL, how, NULL);
    if (how == print_it) pthread_join(thread, NULL);
    have_something_in_hand();
    sleep(1);
    notify("X_RECYCLE=please");
    for (;;) pause();
}
