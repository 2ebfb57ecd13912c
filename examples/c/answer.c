/* Answers every request with the id of its process.
 *
 * SIGTERM lets the request in hand finish: the handler only tells libfcgi that the end is near, and because it is set
 * without SA_RESTART an accept() that waits returns at once.
 */
#include <fcgiapp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void stop(int signal_number)
{
    (void)signal_number;
    FCGX_ShutdownPending();
}

static const char *parameter(const char *name, const FCGX_Request *request)
{
    const char *value = FCGX_GetParam(name, request->envp);
    return value ? value : "";
}

int main(void)
{
    struct sigaction on_term = {.sa_handler = stop};
    FCGX_Request request;
    const char *process = getenv("FCGIMGR_PROCESS");

    if (FCGX_Init() != 0 || FCGX_InitRequest(&request, 0, FCGI_FAIL_ACCEPT_ON_INTR) != 0) {
        fprintf(stderr, "libfcgi cannot start\n");
        return 1;
    }
    sigaction(SIGTERM, &on_term, NULL);

    while (FCGX_Accept_r(&request) == 0) {
        FCGX_FPrintF(request.out,
                     "Content-Type: text/plain; charset=utf-8\r\n\r\n"
                     "Hello from C\nprocess %s\npid %d\nasked %s %s\n",
                     process ? process : "", (int)getpid(),
                     parameter("REQUEST_METHOD", &request), parameter("REQUEST_URI", &request));
        FCGX_Finish_r(&request);
    }
    return 0;
}
