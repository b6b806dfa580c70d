// SPDX-License-Identifier: Apache-2.0
package org.tvmq;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Scanner;

/**
 * Host ASSETS FOLDER ISA < ids: what an application does, on a desktop's virtual machine, with the classes and the
 * glue that ship. Prints lines that test_jvm.py compares.
 */
final class Host {
    private interface Call {
        void run();
    }

    public static void main(String[] arguments) throws Exception {
        List<int[]> read = new ArrayList<>();
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            read.add(Arrays.stream(lines.nextLine().split(" ")).mapToInt(Integer::parseInt).toArray());
        }
        int[][] sentences = read.toArray(new int[0][]);
        try (TvmqModel model = new TvmqModel(arguments[0], null, true)) {
            System.out.println("info " + model.info("task") + " " + model.info("isa") + " " + model.info("none"));
            System.out.println("number " + model.number("architecture.vocab", -1) + " " + model.number("no", 7));
            translate(model, sentences);
            listen(model, sentences);
            refuse(model, sentences);
            cancel(model, sentences);
        }
        misuse(arguments[0]);
        try (TvmqModel model = new TvmqModel(arguments[1], arguments[2], false)) {
            try (TvmqSession session = model.open(1)) {
                model.close(); // its memory stays until the session is closed
                session.set("beams", 1);
                session.translate(sentences, null);
                print("folder", session, sentences.length);
            }
        }
        failure("missing", () -> new TvmqModel("/nowhere/\uD83D\uDE00\u00e4", null, false));
        failure("level", () -> new TvmqModel(arguments[0], "z80", true));
        failure("unlisted", () -> new TvmqModel(arguments[0], null, false));
        failure("null", () -> new TvmqModel(null, null, false));
        failure("long", () -> new TvmqModel("x".repeat(5000), null, false));
    }

    private static void print(String name, TvmqSession session, int count) {
        for (int i = 0; i < count; i++) {
            StringBuilder line = new StringBuilder(name + " " + session.score(i, 0));
            for (int id : session.result(i, 0)) {
                line.append(" ").append(id);
            }
            System.out.println(line);
        }
    }

    private static void translate(TvmqModel model, int[][] sentences) {
        try (TvmqSession session = model.open(2)) {
            for (int beams : new int[] {1, 4}) {
                session.set("beams", beams);
                session.translate(sentences, null);
                print("beams " + beams, session, sentences.length);
            }
            System.out.println("none " + session.result(99, 0).length + " " + session.result(0, -1).length);
        }
    }

    private static void listen(TvmqModel model, int[][] sentences) {
        try (TvmqSession session = model.open(1)) {
            session.set("beams", 1);
            StringBuilder heard = new StringBuilder("heard nan");
            session.translate(new int[][] {sentences[0]}, (sentence, id) -> heard.append(" ").append(id) != null);
            System.out.println(heard);
            failure("stopped", () -> session.translate(sentences, (sentence, id) -> false));
            failure("thrown", () -> session.translate(sentences, (sentence, id) -> {
                throw new IllegalArgumentException("from the listener");
            }));
            failure("nested", () -> session.translate(sentences, (sentence, id) -> {
                session.close();
                return true;
            }));
            session.translate(sentences, null);
            print("again", session, sentences.length);
        }
    }

    private static void refuse(TvmqModel model, int[][] sentences) {
        try (TvmqSession session = model.open(1)) {
            failure("id", () -> session.translate(new int[][] {{321, 0}}, null));
            failure("negative", () -> session.translate(new int[][] {{-5, 0}}, null));
            failure("empty", () -> session.translate(new int[][] {{}}, null));
            failure("nothing", () -> session.translate(new int[0][], null));
            failure("option", () -> session.set("b\u00e4ms", 1));
            failure("encode", () -> session.encode("embed", sentences, null));
            session.close();
            failure("closed", () -> session.translate(sentences, null));
            session.cancel();
            session.close();
        }
        failure("threads", () -> model.open(0));
    }

    /** What the classes above the native methods keep from them. */
    private static void misuse(String assets) {
        long model = Native.load(Native.bytes(assets), null, true);
        long raw = Native.open(model, 1);
        failure("sums", () -> Native.translate(raw, new int[3], new int[] {1}, null));
        failure("below", () -> Native.translate(raw, new int[3], new int[] {-1, 4}, null));
        failure("nulls", () -> Native.translate(raw, null, null, null));
        failure("types", () -> Native.encode(raw, Native.bytes("embed"), new int[3], new int[2], new int[] {3}));
        failure("function", () -> Native.encode(raw, null, new int[3], null, new int[] {3}));
        Native.close(raw);
        Native.unload(model);
        failure("no session", () -> Native.rows(0));
        failure("no model", () -> Native.open(0, 1));
        TvmqModel closed = new TvmqModel(assets, null, true);
        closed.close();
        closed.close();
        failure("unloaded", () -> closed.open(1));
    }

    /** A long translation that another thread stops. */
    private static void cancel(TvmqModel model, int[][] sentences) throws InterruptedException {
        int[][] many = new int[2000][];
        Arrays.fill(many, sentences[1]);
        try (TvmqSession session = model.open(1)) {
            session.set("beams", 8);
            Thread other = new Thread(() -> failure("cancelled", () -> session.translate(many, null)));
            other.start();
            while (other.isAlive()) {
                session.cancel();
                other.join(1);
            }
        }
    }

    private static void failure(String name, Call call) {
        try {
            call.run();
            System.out.println(name + " passed");
        } catch (TvmqException error) {
            System.out.println(name + " " + error.code + " " + error.getMessage());
        } catch (RuntimeException error) {
            System.out.println(name + " " + error.getClass().getSimpleName() + " " + error.getMessage());
        }
    }
}
