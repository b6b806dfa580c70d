// SPDX-License-Identifier: Apache-2.0
package org.tvmq

import android.content.Context
import java.io.Closeable
import java.io.File
import org.json.JSONObject

/**
 * The artifact in the application's assets, under `tvmq/name`.
 *
 * Its libraries are native libraries of the APK, which the system maps and vouches for. Its data is copied once to
 * the application's files, since weights are mapped on 64-byte boundaries, which assets do not keep: 4 bytes are all
 * that an APK gives them. A copy appears complete or not at all, and goes when the application brings another.
 */
class InstalledArtifact(context: Context, name: String, isa: String? = null) : Closeable {
    /** Where the data is; `tokenizer` is for the application. */
    val folder: File = install(context, name)
    val model = TvmqModel(folder.path, isa, true)

    override fun close() = model.close()

    private companion object {
        private const val MANIFEST = "manifest.json"
        private const val STAGING = "new"
        private const val HOUR = 3_600_000

        @Synchronized
        fun install(context: Context, name: String): File {
            val source = "tvmq/$name"
            val manifest = context.assets.open("$source/$MANIFEST").use { it.readBytes() }
            val facts = JSONObject(String(manifest, Charsets.UTF_8))
            val parent = File(context.noBackupFilesDir, source)
            val target = File(parent, facts.getString("digest"))
            if (File(target, MANIFEST).exists()) return target
            val staging = File.createTempFile(STAGING, "", parent.apply { mkdirs() })
            staging.delete()
            for (file in listOf(MANIFEST) + facts.getJSONObject("files").keys().asSequence()) {
                val place = File(staging, file).apply { parentFile?.mkdirs() }
                context.assets.open("$source/$file").use { from -> place.outputStream().use { from.copyTo(it) } }
            }
            // another process of the application may have been faster
            if (!staging.renameTo(target)) staging.deleteRecursively()
            parent.listFiles()?.filter { it != target && outdated(it) }?.forEach { it.deleteRecursively() }
            return target
        }

        /** What an earlier version left, but not what another process is copying right now. */
        private fun outdated(folder: File) =
            !folder.name.startsWith(STAGING) || folder.lastModified() < System.currentTimeMillis() - HOUR
    }
}
