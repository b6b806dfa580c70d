/* SPDX-License-Identifier: Apache-2.0
 *
 * What C code may use of Android's C library on 64-bit Arm, API level 24 and up, for compilers that come without
 * Android's own headers. Every standard header that is offered (see __init__.py) is this file.
 *
 * Types, constants and layouts are those of bionic (AOSP platform/bionic, 731631f of 2025-03-26; the file is named
 * beside each group), where they differ from glibc's: pthread types are smaller, errno has another accessor, sysconf
 * has other numbers, off_t and struct stat are the kernel's. Functions are those that libc.map.txt and libm.map.txt
 * list without an introduction later than 24; the names in each section are what stands in for the library when
 * something is linked. One declaration a line.
 */
#ifndef TVMQ_BIONIC_H
#define TVMQ_BIONIC_H

#if !defined(__aarch64__) || !defined(__LP64__)
#error "these are the types of 64-bit Arm"
#endif

#include <stdarg.h>
#include <stddef.h>

/* stdint.h */
typedef __INT8_TYPE__ int8_t;
typedef __INT16_TYPE__ int16_t;
typedef __INT32_TYPE__ int32_t;
typedef long int64_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef unsigned long uint64_t;
typedef long intptr_t;
typedef unsigned long uintptr_t;
typedef long intmax_t;
typedef unsigned long uintmax_t;
typedef int8_t int_least8_t, int_fast8_t;
typedef int16_t int_least16_t;
typedef int32_t int_least32_t;
typedef int64_t int_least64_t, int_fast16_t, int_fast32_t, int_fast64_t;
typedef uint8_t uint_least8_t, uint_fast8_t;
typedef uint16_t uint_least16_t;
typedef uint32_t uint_least32_t;
typedef uint64_t uint_least64_t, uint_fast16_t, uint_fast32_t, uint_fast64_t;
#define INT8_MAX 127
#define INT32_MAX 2147483647
#define INT64_MAX 9223372036854775807L
#define INT32_MIN (-INT32_MAX - 1)
#define UINT32_MAX 4294967295U
#define UINT64_MAX 18446744073709551615UL
#define SIZE_MAX UINT64_MAX

#include "elf_types.h"

/* limits.h; PATH_MAX: linux/limits.h */
#define CHAR_BIT 8
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295U
#define LONG_MAX 9223372036854775807L
#define LONG_MIN (-LONG_MAX - 1L)
#define ULONG_MAX 18446744073709551615UL
#define LLONG_MAX 9223372036854775807LL
#define ULLONG_MAX 18446744073709551615ULL
#define PATH_MAX 4096
#define NAME_MAX 255

/* sys/types.h, asm-generic/posix_types.h */
typedef long ssize_t;
typedef long off_t;
typedef long time_t;
typedef int pid_t;
typedef int clockid_t;
typedef unsigned int uid_t;
typedef unsigned int gid_t;
typedef unsigned int mode_t;
typedef unsigned int nlink_t;
typedef unsigned int useconds_t;
typedef unsigned long ino_t;
typedef unsigned long dev_t;

/* errno.h, asm-generic/errno-base.h */
#define errno (*__errno())
#define ENOENT 2
#define EINTR 4
#define EIO 5
#define EAGAIN 11
#define ENOMEM 12
#define EACCES 13
#define EEXIST 17
#define ENOTDIR 20
#define EINVAL 22
#define ERANGE 34
#define ENAMETOOLONG 36
#define ELOOP 40

/* asm-arm64/fcntl.h, asm-generic/fcntl.h */
#define O_RDONLY 0
#define O_WRONLY 01
#define O_CREAT 0100
#define O_EXCL 0200
#define O_TRUNC 01000
#define O_NONBLOCK 04000
#define O_DIRECTORY 040000
#define O_NOFOLLOW 0100000
#define O_CLOEXEC 02000000

/* sys/mman.h, asm-generic/mman-common.h, linux/mman.h */
#define PROT_NONE 0
#define PROT_READ 1
#define PROT_WRITE 2
#define PROT_EXEC 4
#define MAP_SHARED 1
#define MAP_PRIVATE 2
#define MAP_ANONYMOUS 0x20
#define MAP_POPULATE 0x8000
#define MAP_FAILED ((void *)-1)
#define MADV_WILLNEED 3
#define MADV_DONTNEED 4

/* dlfcn.h, 64 bits */
#define RTLD_LOCAL 0
#define RTLD_LAZY 1
#define RTLD_NOW 2
#define RTLD_NOLOAD 4

/* sys/auxv.h, linux/auxvec.h */
#define AT_PAGESZ 6
#define AT_HWCAP 16
#define AT_HWCAP2 26

/* bits/sysconf.h */
#define _SC_PAGESIZE 0x27
#define _SC_PAGE_SIZE 0x28
#define _SC_NPROCESSORS_CONF 0x60
#define _SC_NPROCESSORS_ONLN 0x61

/* time.h, linux/time.h */
struct timespec {
    time_t tv_sec;
    long tv_nsec;
};
#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC 1

/* sys/stat.h: __STAT64_BODY of arm64 */
struct stat {
    dev_t st_dev;
    ino_t st_ino;
    mode_t st_mode;
    nlink_t st_nlink;
    uid_t st_uid;
    gid_t st_gid;
    dev_t st_rdev;
    unsigned long __pad1;
    off_t st_size;
    int st_blksize, __pad2;
    long st_blocks;
    struct timespec st_atim, st_mtim, st_ctim;
    unsigned int __unused4, __unused5;
};
#define S_IFMT 0170000
#define S_IFDIR 0040000
#define S_IFREG 0100000
#define S_ISDIR(mode) (((mode) & S_IFMT) == S_IFDIR)
#define S_ISREG(mode) (((mode) & S_IFMT) == S_IFREG)

/* dirent.h */
typedef struct DIR DIR;
struct dirent {
    ino_t d_ino;
    off_t d_off;
    unsigned short d_reclen;
    unsigned char d_type;
    char d_name[256];
};

/* sched.h, 64 bits */
#define CPU_SETSIZE 1024
typedef struct {
    unsigned long __bits[CPU_SETSIZE / 64];
} cpu_set_t;
#define CPU_ZERO(set) __builtin_memset(set, 0, sizeof(cpu_set_t))
#define CPU_SET(cpu, set) ((void)((size_t)(cpu) < CPU_SETSIZE && ((set)->__bits[(size_t)(cpu) / 64] |= 1UL << (cpu) % 64)))
#define CPU_CLR(cpu, set) ((void)((size_t)(cpu) < CPU_SETSIZE && ((set)->__bits[(size_t)(cpu) / 64] &= ~(1UL << (cpu) % 64))))
#define CPU_ISSET(cpu, set) ((size_t)(cpu) < CPU_SETSIZE && ((set)->__bits[(size_t)(cpu) / 64] >> (cpu) % 64 & 1))
#define CPU_EQUAL(a, b) (!__builtin_memcmp(a, b, sizeof(cpu_set_t)))
#define CPU_COUNT(set) __sched_cpucount(sizeof(cpu_set_t), set)

/* bits/pthread_types.h, 64 bits; pthread.h */
typedef long pthread_t;
typedef int pthread_key_t;
typedef int pthread_once_t;
typedef long pthread_mutexattr_t;
typedef long pthread_condattr_t;
typedef struct {
    int32_t __private[10];
} pthread_mutex_t;
typedef struct {
    int32_t __private[12];
} pthread_cond_t;
typedef struct {
    uint32_t flags;
    void *stack_base;
    size_t stack_size, guard_size;
    int32_t sched_policy, sched_priority;
    char __reserved[16];
} pthread_attr_t;
#define PTHREAD_MUTEX_INITIALIZER {{0}}
#define PTHREAD_COND_INITIALIZER {{0}}
#define PTHREAD_ONCE_INIT 0

/* stdio.h, stdlib.h */
typedef struct __sFILE FILE;
#define EOF (-1)
#define SEEK_SET 0
#define SEEK_CUR 1
#define SEEK_END 2

/* math.h */
#define HUGE_VAL __builtin_huge_val()
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define isfinite(x) __builtin_isfinite(x)
#define isinf(x) __builtin_isinf(x)
#define isnan(x) __builtin_isnan(x)
#define signbit(x) __builtin_signbit(x)

/* == libc.so == */
extern FILE *stdin;
extern FILE *stdout;
extern FILE *stderr;
int *__errno(void);
void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void *realloc(void *old, size_t size);
void free(void *memory);
int posix_memalign(void **memory, size_t alignment, size_t size);
void abort(void) __attribute__((noreturn));
void exit(int code) __attribute__((noreturn));
char *getenv(const char *name);
int atoi(const char *text);
long atol(const char *text);
double atof(const char *text);
long strtol(const char *text, char **end, int base);
unsigned long strtoul(const char *text, char **end, int base);
long long strtoll(const char *text, char **end, int base);
unsigned long long strtoull(const char *text, char **end, int base);
double strtod(const char *text, char **end);
float strtof(const char *text, char **end);
double ldexp(double x, int exponent);
void qsort(void *items, size_t count, size_t size, int (*compare)(const void *, const void *));
void *bsearch(const void *key, const void *items, size_t count, size_t size, int (*compare)(const void *, const void *));
void *memchr(const void *data, int byte, size_t size);
int memcmp(const void *a, const void *b, size_t size);
void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
char *strcat(char *to, const char *from);
char *strchr(const char *text, int c);
int strcmp(const char *a, const char *b);
char *strcpy(char *to, const char *from);
size_t strcspn(const char *text, const char *set);
char *strdup(const char *text);
char *strerror(int code);
size_t strlen(const char *text);
int strncmp(const char *a, const char *b, size_t size);
char *strncpy(char *to, const char *from, size_t size);
size_t strnlen(const char *text, size_t size);
char *strpbrk(const char *text, const char *set);
char *strrchr(const char *text, int c);
size_t strspn(const char *text, const char *set);
char *strstr(const char *text, const char *part);
int printf(const char *format, ...);
int fprintf(FILE *file, const char *format, ...);
int sprintf(char *to, const char *format, ...);
int snprintf(char *to, size_t size, const char *format, ...);
int vsnprintf(char *to, size_t size, const char *format, va_list arguments);
int scanf(const char *format, ...);
int sscanf(const char *text, const char *format, ...);
int fscanf(FILE *file, const char *format, ...);
FILE *fopen(const char *path, const char *mode);
int fclose(FILE *file);
int fflush(FILE *file);
int getc(FILE *file);
int getchar(void);
int ungetc(int c, FILE *file);
int putchar(int c);
int fputc(int c, FILE *file);
int fputs(const char *text, FILE *file);
int puts(const char *text);
char *fgets(char *to, int size, FILE *file);
size_t fread(void *to, size_t size, size_t count, FILE *file);
size_t fwrite(const void *from, size_t size, size_t count, FILE *file);
int open(const char *path, int flags, ...);
int openat(int folder, const char *path, int flags, ...);
int close(int handle);
ssize_t read(int handle, void *to, size_t size);
ssize_t pread(int handle, void *to, size_t size, off_t offset);
ssize_t write(int handle, const void *from, size_t size);
off_t lseek(int handle, off_t offset, int whence);
int unlink(const char *path);
int access(const char *path, int mode);
ssize_t readlink(const char *path, char *to, size_t size);
int fstat(int handle, struct stat *info);
int stat(const char *path, struct stat *info);
int lstat(const char *path, struct stat *info);
DIR *opendir(const char *path);
struct dirent *readdir(DIR *folder);
int closedir(DIR *folder);
void *mmap(void *place, size_t size, int protection, int flags, int handle, off_t offset);
int munmap(void *place, size_t size);
int mprotect(void *place, size_t size, int protection);
int madvise(void *place, size_t size, int advice);
long sysconf(int name);
long syscall(long number, ...);
unsigned long getauxval(unsigned long type);
pid_t getpid(void);
pid_t gettid(void);
int usleep(useconds_t microseconds);
int nanosleep(const struct timespec *time, struct timespec *left);
int clock_gettime(clockid_t clock, struct timespec *time);
time_t time(time_t *out);
int sched_yield(void);
int sched_getcpu(void);
int sched_getaffinity(pid_t thread, size_t size, cpu_set_t *set);
int sched_setaffinity(pid_t thread, size_t size, const cpu_set_t *set);
int __sched_cpucount(size_t size, const cpu_set_t *set);
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);
int pthread_join(pthread_t thread, void **result);
pthread_t pthread_self(void);
int pthread_attr_init(pthread_attr_t *attributes);
int pthread_attr_destroy(pthread_attr_t *attributes);
int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size);
int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int pthread_mutex_destroy(pthread_mutex_t *mutex);
int pthread_mutex_lock(pthread_mutex_t *mutex);
int pthread_mutex_trylock(pthread_mutex_t *mutex);
int pthread_mutex_unlock(pthread_mutex_t *mutex);
int pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes);
int pthread_cond_destroy(pthread_cond_t *condition);
int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int pthread_cond_signal(pthread_cond_t *condition);
int pthread_cond_broadcast(pthread_cond_t *condition);
int pthread_once(pthread_once_t *once, void (*run)(void));
int pthread_key_create(pthread_key_t *key, void (*destroy)(void *));
int pthread_key_delete(pthread_key_t key);
void *pthread_getspecific(pthread_key_t key);
int pthread_setspecific(pthread_key_t key, const void *value);

/* == libdl.so == */
void *dlopen(const char *path, int flags);
int dlclose(void *library);
char *dlerror(void);
void *dlsym(void *library, const char *name);

/* == libm.so == */
double ceil(double x);
float ceilf(float x);
double cos(double x);
float cosf(float x);
double erf(double x);
float erff(float x);
double exp(double x);
float expf(float x);
double exp2(double x);
float exp2f(float x);
double fabs(double x);
float fabsf(float x);
double floor(double x);
float floorf(float x);
double fma(double x, double y, double z);
float fmaf(float x, float y, float z);
double fmax(double x, double y);
float fmaxf(float x, float y);
double fmin(double x, double y);
float fminf(float x, float y);
double fmod(double x, double y);
float fmodf(float x, float y);
float ldexpf(float x, int exponent);
double log(double x);
float logf(float x);
double nearbyint(double x);
float nearbyintf(float x);
double pow(double x, double y);
float powf(float x, float y);
double rint(double x);
float rintf(float x);
double round(double x);
float roundf(float x);
double sin(double x);
float sinf(float x);
void sincos(double x, double *sine, double *cosine);
void sincosf(float x, float *sine, float *cosine);
double sqrt(double x);
float sqrtf(float x);
double tanh(double x);
float tanhf(float x);
double trunc(double x);
float truncf(float x);

#endif
