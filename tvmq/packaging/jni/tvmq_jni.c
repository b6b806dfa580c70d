/* SPDX-License-Identifier: Apache-2.0
 *
 * The native methods of org.tvmq.Native. Handles are pointers as numbers; 0 is none. The classes above (TvmqModel,
 * TvmqSession) see to it that a handle is used by one thread, and not after it was closed. Whatever else comes in
 * is checked here or by the runtime and ends as a TvmqException. Text crosses as UTF-8 bytes: a virtual machine may
 * abort on a C string that is not in its own encoding.
 */
#include <stdlib.h>
#include <string.h>

#include "jni_table.h"
#include "tvmq.h"

#define METHOD(result, name) __attribute__((visibility("default"))) result Java_org_tvmq_Native_##name

enum { MESSAGE = 512, MAX_TEXT = 4096 };

/* Throws what Native.error makes of a code and a sentence. */
static void throw_error(JNIEnv *env, jclass native, int code, const char *message) {
    const jsize size = (jsize)strlen(message);
    jmethodID make = JNI(env, JNI_GET_STATIC_METHOD_ID, jmethodID, jclass, const char *, const char *)(
        env, native, "error", "(I[B)Lorg/tvmq/TvmqException;");
    jarray text = make ? JNI(env, JNI_NEW_BYTE_ARRAY, jarray, jsize)(env, size) : NULL;
    if (!text) return; /* the virtual machine has thrown already */
    JNI(env, JNI_SET_BYTE_ARRAY_REGION, void, jarray, jsize, jsize, const jbyte *)(
        env, text, 0, size, (const jbyte *)message);
    jthrowable error = JNI(env, JNI_CALL_STATIC_OBJECT_METHOD, jobject, jclass, jmethodID, ...)(
        env, native, make, (jint)code, text);
    if (!JNI_0(env, JNI_EXCEPTION_CHECK, jboolean)) JNI(env, JNI_THROW, jint, jthrowable)(env, error);
}

static jsize length_of(JNIEnv *env, jarray array) {
    return array ? JNI(env, JNI_GET_ARRAY_LENGTH, jsize, jarray)(env, array) : 0;
}

/* Bytes of an array as text; NULL for no array. good is false after an exception. */
static const char *text_of(JNIEnv *env, jclass native, jarray bytes, char buffer[MAX_TEXT], int *good) {
    const jsize size = length_of(env, bytes);
    *good = 1;
    if (!bytes) return NULL;
    if (size >= MAX_TEXT) {
        *good = 0;
        throw_error(env, native, TVMQ_USAGE, "a path or name is too long");
        return NULL;
    }
    JNI(env, JNI_GET_BYTE_ARRAY_REGION, void, jarray, jsize, jsize, jbyte *)(env, bytes, 0, size, (jbyte *)buffer);
    buffer[size] = 0;
    return buffer;
}

static tvmq_session *session_of(JNIEnv *env, jclass native, jlong handle) {
    if (!handle) throw_error(env, native, TVMQ_USAGE, "the session is closed");
    return (tvmq_session *)(uintptr_t)handle;
}

static tvmq_model *model_of(JNIEnv *env, jclass native, jlong handle) {
    if (!handle) throw_error(env, native, TVMQ_USAGE, "the model is closed");
    return (tvmq_model *)(uintptr_t)handle;
}

METHOD(jlong, load)(JNIEnv *env, jclass native, jarray path, jarray isa, jboolean installed) {
    char message[MESSAGE] = "", folder[MAX_TEXT], level[MAX_TEXT];
    int good;
    const char *wanted = text_of(env, native, isa, level, &good);
    const char *where = good ? text_of(env, native, path, folder, &good) : NULL;
    if (!good) return 0;
    tvmq_model *model = NULL;
    int code = TVMQ_USAGE;
    if (!where)
        strcpy(message, "there is no path");
    else
        code = (installed ? tvmq_load_installed : tvmq_load)(where, wanted, &model, message, sizeof message);
    if (code) throw_error(env, native, code, message);
    return (jlong)(uintptr_t)model;
}

METHOD(void, unload)(JNIEnv *env, jclass native, jlong model) {
    (void)env, (void)native;
    tvmq_unload((tvmq_model *)(uintptr_t)model);
}

METHOD(jarray, info)(JNIEnv *env, jclass native, jlong handle, jarray key) {
    char buffer[MAX_TEXT];
    int good;
    const tvmq_model *model = model_of(env, native, handle);
    const char *name = model ? text_of(env, native, key, buffer, &good) : NULL;
    const char *value = name ? tvmq_info(model, name) : NULL;
    if (!value) return NULL;
    const jsize size = (jsize)strlen(value);
    jarray bytes = JNI(env, JNI_NEW_BYTE_ARRAY, jarray, jsize)(env, size);
    if (bytes)
        JNI(env, JNI_SET_BYTE_ARRAY_REGION, void, jarray, jsize, jsize, const jbyte *)(
            env, bytes, 0, size, (const jbyte *)value);
    return bytes;
}

METHOD(jdouble, number)(JNIEnv *env, jclass native, jlong handle, jarray key, jdouble otherwise) {
    char buffer[MAX_TEXT];
    int good;
    const tvmq_model *model = model_of(env, native, handle);
    const char *name = model ? text_of(env, native, key, buffer, &good) : NULL;
    return name ? tvmq_number(model, name, otherwise) : otherwise;
}

METHOD(jlong, open)(JNIEnv *env, jclass native, jlong handle, jint threads) {
    tvmq_session *session = NULL;
    tvmq_model *model = model_of(env, native, handle);
    if (!model) return 0;
    const int code = tvmq_open(model, threads, &session);
    if (!code) return (jlong)(uintptr_t)session;
    throw_error(env, native, code, tvmq_message(session));
    tvmq_close(session);
    return 0;
}

METHOD(void, close)(JNIEnv *env, jclass native, jlong session) {
    (void)env, (void)native;
    tvmq_close((tvmq_session *)(uintptr_t)session);
}

METHOD(void, set)(JNIEnv *env, jclass native, jlong handle, jarray option, jdouble value) {
    char buffer[MAX_TEXT];
    int good;
    tvmq_session *session = session_of(env, native, handle);
    const char *name = session ? text_of(env, native, option, buffer, &good) : NULL;
    const int code = name ? tvmq_set(session, name, value) : 0;
    if (code) throw_error(env, native, code, tvmq_message(session));
}

/* Token ids, types and lengths of a batch, copied out of their arrays. */
typedef struct {
    int32_t *ids, *types;
    size_t *lengths, count;
} Batch;

static void batch_free(Batch *batch) { free(batch->ids), free(batch->types), free(batch->lengths); }

static int32_t *numbers_of(JNIEnv *env, jarray array, jsize count) {
    int32_t *numbers = malloc(((size_t)count + 1) * sizeof *numbers);
    if (numbers && count)
        JNI(env, JNI_GET_INT_ARRAY_REGION, void, jarray, jsize, jsize, jint *)(env, array, 0, count, numbers);
    return numbers;
}

/* False after an exception: lengths that are not those of the ids, or no memory. */
static int batch_read(JNIEnv *env, jclass native, jarray ids, jarray types, jarray lengths, Batch *batch) {
    const jsize total = length_of(env, ids), count = length_of(env, lengths);
    int64_t sum = 0;
    *batch = (Batch){.count = (size_t)count};
    int32_t *numbers = numbers_of(env, lengths, count);
    batch->lengths = malloc(((size_t)count + 1) * sizeof *batch->lengths);
    batch->ids = numbers_of(env, ids, total);
    batch->types = types && length_of(env, types) == total ? numbers_of(env, types, total) : NULL;
    const int memory = numbers && batch->lengths && batch->ids;
    int good = memory && (!types || batch->types);
    for (jsize i = 0; good && i < count; i++) {
        good = numbers[i] >= 0;
        sum += numbers[i];
        batch->lengths[i] = (size_t)numbers[i];
    }
    free(numbers);
    if (good && sum == total) return 1;
    batch_free(batch);
    throw_error(env, native, memory ? TVMQ_USAGE : TVMQ_RESOURCE,
                memory ? "lengths are not those of the ids" : "no memory");
    return 0;
}

/* Who hears of tokens while they come. */
typedef struct {
    JNIEnv *env;
    jobject listener;
    jmethodID method;
} Listener;

/* Nonzero, which stops the translation, when the listener says so or throws. */
static int on_token(void *user, size_t sentence, int32_t id) {
    const Listener *l = user;
    const jboolean more = JNI(l->env, JNI_CALL_BOOLEAN_METHOD, jboolean, jobject, jmethodID, ...)(
        l->env, l->listener, l->method, (jint)sentence, (jint)id);
    return JNI_0(l->env, JNI_EXCEPTION_CHECK, jboolean) || !more;
}

METHOD(void, translate)(JNIEnv *env, jclass native, jlong handle, jarray ids, jarray lengths, jobject listener) {
    Listener hears = {env, listener, NULL};
    Batch batch;
    tvmq_session *session = session_of(env, native, handle);
    if (!session) return;
    if (listener) {
        jclass class = JNI(env, JNI_GET_OBJECT_CLASS, jclass, jobject)(env, listener);
        hears.method = JNI(env, JNI_GET_METHOD_ID, jmethodID, jclass, const char *, const char *)(
            env, class, "onToken", "(II)Z");
        if (!hears.method) return;
    }
    if (!batch_read(env, native, ids, NULL, lengths, &batch)) return;
    tvmq_stream(session, listener ? on_token : NULL, &hears);
    const int code = tvmq_translate(session, batch.ids, batch.lengths, batch.count);
    tvmq_stream(session, NULL, NULL);
    batch_free(&batch);
    if (code && !JNI_0(env, JNI_EXCEPTION_CHECK, jboolean))
        throw_error(env, native, code, tvmq_message(session));
}

METHOD(jarray, result)(JNIEnv *env, jclass native, jlong handle, jint sentence, jint rank) {
    const int32_t *tokens = NULL;
    const tvmq_session *session = session_of(env, native, handle);
    if (!session) return NULL;
    const int known = sentence >= 0 && rank >= 0;
    const jsize count = known ? (jsize)tvmq_result(session, (size_t)sentence, (size_t)rank, &tokens, NULL) : 0;
    jarray array = JNI(env, JNI_NEW_INT_ARRAY, jarray, jsize)(env, count);
    if (array && count)
        JNI(env, JNI_SET_INT_ARRAY_REGION, void, jarray, jsize, jsize, const jint *)(env, array, 0, count, tokens);
    return array;
}

METHOD(jfloat, score)(JNIEnv *env, jclass native, jlong handle, jint sentence, jint rank) {
    float score = 0;
    const tvmq_session *session = session_of(env, native, handle);
    if (session && sentence >= 0 && rank >= 0) tvmq_result(session, (size_t)sentence, (size_t)rank, NULL, &score);
    return score;
}

METHOD(void, encode)(JNIEnv *env, jclass native, jlong handle, jarray function, jarray ids, jarray types,
                     jarray lengths) {
    char buffer[MAX_TEXT];
    int good = 0;
    Batch batch;
    tvmq_session *session = session_of(env, native, handle);
    const char *name = session ? text_of(env, native, function, buffer, &good) : NULL;
    if (session && good && !name) throw_error(env, native, TVMQ_USAGE, "there is no function");
    if (!name || !batch_read(env, native, ids, types, lengths, &batch)) return;
    const int code = !strcmp(name, "classify")
                         ? tvmq_classify(session, batch.ids, batch.types, batch.lengths, batch.count)
                         : tvmq_encode(session, name, batch.ids, batch.types, batch.lengths, batch.count);
    batch_free(&batch);
    if (code) throw_error(env, native, code, tvmq_message(session));
}

METHOD(jarray, rows)(JNIEnv *env, jclass native, jlong handle) {
    size_t rows = 0, columns = 0;
    const tvmq_session *session = session_of(env, native, handle);
    if (!session) return NULL;
    const float *data = tvmq_rows(session, &rows, &columns);
    if (rows && columns > INT32_MAX / rows) {
        throw_error(env, native, TVMQ_RESOURCE, "more numbers than an array holds");
        return NULL;
    }
    const jsize count = data ? (jsize)(rows * columns) : 0;
    jarray array = JNI(env, JNI_NEW_FLOAT_ARRAY, jarray, jsize)(env, count);
    if (array && count)
        JNI(env, JNI_SET_FLOAT_ARRAY_REGION, void, jarray, jsize, jsize, const jfloat *)(env, array, 0, count, data);
    return array;
}

METHOD(jint, columns)(JNIEnv *env, jclass native, jlong handle) {
    size_t rows = 0, columns = 0;
    const tvmq_session *session = session_of(env, native, handle);
    if (session) tvmq_rows(session, &rows, &columns);
    return (jint)columns;
}

METHOD(void, cancel)(JNIEnv *env, jclass native, jlong session) {
    (void)env, (void)native;
    if (session) tvmq_cancel((tvmq_session *)(uintptr_t)session);
}
