"""talkhead: measuring a Gaussian head: PSNR, SSIM, LPIPS, flicker, expression sheets."""
