# Sourced, with a folder in $work: llama-perplexity prints from a thread that it does not wait for when it ends, so its last lines,
# which hold its figures, are sometimes lost, on a busy machine often. From here on it ends a second later.
cat >"$work/late_exit.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

__attribute__((destructor)) static void late_exit(void) {
    if (!strcmp(program_invocation_short_name, "llama-perplexity"))
        sleep(1);
}
C
cc -shared -fPIC -o "$work/late_exit.so" "$work/late_exit.c"
export LD_PRELOAD=$work/late_exit.so
