/*
 * Preloaded into the ssh servers of the benchmark: whoever they look up has BENCH_HOME as home and
 * /bin/sh as shell. dropbear takes authorized_keys from the home in the password database and from
 * nowhere else, and nobody's real ~/.ssh is touched for a benchmark; nor should anybody's .bashrc be
 * what is measured.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pwd.h>
#include <stdlib.h>

static struct passwd *rehome(struct passwd *entry)
{
    char *home = getenv("BENCH_HOME");

    if (entry != NULL && home != NULL) {
        entry->pw_dir = home;
        entry->pw_shell = "/bin/sh";
    }
    return entry;
}

struct passwd *getpwnam(const char *name)
{
    struct passwd *(*real)(const char *) = dlsym(RTLD_NEXT, "getpwnam");

    return real == NULL ? NULL : rehome(real(name));
}

struct passwd *getpwuid(uid_t uid)
{
    struct passwd *(*real)(uid_t) = dlsym(RTLD_NEXT, "getpwuid");

    return real == NULL ? NULL : rehome(real(uid));
}
