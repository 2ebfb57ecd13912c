// What a worker says to its manager (sd_notify(3)).
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void notify(const char *message) {
    const char *path = getenv("NOTIFY_SOCKET");
    int sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    sendto(sender, message, strlen(message), 0, (struct sockaddr *)&address, sizeof address);
    close(sender);
}
