/* Executes another program with a close-on-exec descriptor of a file whose server never answers when it is closed
   (FUSE). Until then this process keeps the lock that others wait for who read its /proc/PID/stat, environ or fd.

   usage: FILE itself|child [connected]: this process does so, or a child of it in a session of its own. The parent
   of such a child ends with 1 shortly after. `connected`: it has accepted a connection, from itself. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void execute(const char *file) {
    if (open(file, O_RDONLY | O_CLOEXEC) < 0) _exit(2);
    dprintf(1, "executes %d\n", getpid());
    execl("/bin/sleep", "sleep", "1000", (char *)0);
    _exit(3);
}

int main(int count, char **words) {
    if (count > 3) {
        struct sockaddr_in to;
        socklen_t length = sizeof to;
        if (getsockname(0, (struct sockaddr *)&to, &length) < 0) return 4;
        if (connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&to, length) < 0) return 5;
        if (accept(0, 0, 0) < 0) return 6;
    }
    if (strcmp(words[2], "itself") == 0) {
        usleep(500000);
        execute(words[1]);
    }
    if (fork() == 0) {
        setsid();
        execute(words[1]);
    }
    usleep(700000);
    return 1;
}
