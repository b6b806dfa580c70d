/* SPDX-License-Identifier: Apache-2.0
 * usage: cores SYSFS ALLOWED PIN NUMBER COUNT
 * Where thread NUMBER of COUNT runs, and whether it is put there; cores are lists as "0,2,3". */
#include "cores.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    cpu_set_t allowed, cores, chosen;
    if (argc != 6) return 2;
    CPU_ZERO(&allowed);
    for (char *word = strtok(argv[2], ","); word; word = strtok(NULL, ",")) CPU_SET(atoi(word), &allowed);
    const bool fast = cores_big(argv[1], &allowed, &cores);
    if (!fast) cores = allowed;
    const bool put = cores_for((Pin)atoi(argv[3]), fast, &cores, atoi(argv[4]), atoi(argv[5]), &chosen);
    printf("%d", put);
    for (int core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, &chosen)) printf(" %d", core);
    puts("");
    return 0;
}
