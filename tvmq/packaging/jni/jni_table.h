/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of the Java Native Interface that tvmq_jni.c uses, so that it needs neither a JDK nor Android's NDK to
 * compile. The table of functions is fixed by the interface's specification (chapter 4, "Interface Function Table"):
 * every virtual machine has the same function at the same index.
 */
#ifndef TVMQ_JNI_TABLE_H
#define TVMQ_JNI_TABLE_H

#include <stdint.h>

typedef uint8_t jboolean;
typedef int8_t jbyte;
typedef int32_t jint;
typedef int64_t jlong;
typedef float jfloat;
typedef double jdouble;
typedef jint jsize;
typedef void *jobject, *jclass, *jthrowable, *jarray, *jmethodID;

/* Indices into the table. */
enum {
    JNI_THROW = 13,
    JNI_GET_OBJECT_CLASS = 31,
    JNI_GET_METHOD_ID = 33,
    JNI_CALL_BOOLEAN_METHOD = 37,
    JNI_GET_STATIC_METHOD_ID = 113,
    JNI_CALL_STATIC_OBJECT_METHOD = 114,
    JNI_GET_ARRAY_LENGTH = 171,
    JNI_NEW_BYTE_ARRAY = 176,
    JNI_NEW_INT_ARRAY = 179,
    JNI_NEW_FLOAT_ARRAY = 181,
    JNI_GET_BYTE_ARRAY_REGION = 200,
    JNI_GET_INT_ARRAY_REGION = 203,
    JNI_SET_BYTE_ARRAY_REGION = 208,
    JNI_SET_INT_ARRAY_REGION = 211,
    JNI_SET_FLOAT_ARRAY_REGION = 213,
    JNI_EXCEPTION_CHECK = 228
};

/* What every native method gets: a pointer to a pointer to the table. */
typedef void *const *const JNIEnv;

/* The function at an index, as a function of the given type whose first parameter is the JNIEnv. */
#define JNI(env, index, result, ...) ((result(*)(JNIEnv *, __VA_ARGS__))(uintptr_t)(*(env))[index])

#define JNI_0(env, index, result) ((result(*)(JNIEnv *))(uintptr_t)(*(env))[index])(env)

#endif
