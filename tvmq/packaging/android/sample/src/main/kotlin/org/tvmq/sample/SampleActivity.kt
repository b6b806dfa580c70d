// SPDX-License-Identifier: Apache-2.0
package org.tvmq.sample

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.TextView
import kotlin.concurrent.thread
import org.tvmq.InstalledArtifact
import org.tvmq.@class@
import org.tvmq.TvmqException

/** Runs the model on token ids that are typed in: `@ids@`. */
class SampleActivity : Activity() {
    private var artifact: InstalledArtifact? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val input = EditText(this).apply { setText("@ids@") }
        val output = TextView(this)
        val button = Button(this).apply { text = "@verb@" }
        val views = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        listOf(input, button, output).forEach(views::addView)
        setContentView(views)
        button.setOnClickListener {
            val ids = input.text.split(' ').mapNotNull { it.toIntOrNull() }.toIntArray()
            button.isEnabled = false
            thread {
                val answer = try { run(ids) } catch (error: TvmqException) { error.message }
                runOnUiThread {
                    output.text = answer
                    button.isEnabled = true
                }
            }
        }
    }

    /** On a thread of its own: the first call copies the model out of the APK. */
    private fun run(ids: IntArray): String {
        val opened = artifact ?: InstalledArtifact(this, "@name@").also { artifact = it }
        @class@(opened.model, threads = 2).use { model -> return model.@call@(ids).joinToString(" ") }
    }

    override fun onDestroy() {
        artifact?.close()
        super.onDestroy()
    }
}
